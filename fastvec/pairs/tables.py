"""Makes tables of rows: names them by the columns of their outputs, and gathers small tables to larger ones.

Shapes: n rows.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.errors import UsageError
from fastvec.pairs.unit_blocks import Positions
from fastvec.vectors.stored import Part, Vectors, renamed
from fastvec.vectors.unified import casts_as_output_errors

ROWS_AT_ONCE, BYTES_AT_ONCE = 65_536, 32 << 20  # of a row group or record batch
FILE, ROW, CHUNK = "file", "row", "chunk"


class RowNames:
    """The columns that say which row a position is: `row`, `file` of several outputs, and `chunk` of passages."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors, self.has_files = vectors, vectors.has_several
        self._files = pa.array([part.source for part in vectors.parts], pa.string())
        self._ends = np.array([part.end for part in vectors.parts])

    @cached_property
    def _numbers(self) -> dict[str, npt.NDArray[np.integer]]:
        """The row numbers of all positions, and those of passages; read when they are needed."""
        names = [name for name in (ROW, CHUNK) if name in self._vectors.row_columns]
        found: dict[str, npt.NDArray[np.integer]] = {
            name: np.empty(self._vectors.rows, dtype=np.int64 if name == ROW else np.int32) for name in names
        }
        for begin, batch in self._vectors.batches(names):
            for name in names:
                found[name][begin : begin + batch.num_rows] = batch.column(name).to_numpy()
        return found

    def columns(self, positions: Positions, names: Mapping[str, str]) -> dict[str, pa.Array]:
        """Return the columns for the rows at `positions` [n], null where one is negative, under other `names`."""
        missing = positions < 0
        found = {}
        if self.has_files:
            found[names[FILE]] = self.files(positions)
        for name, numbers in self._numbers.items():
            some = numbers[positions] if len(numbers) else np.zeros(len(positions), dtype=numbers.dtype)
            found[names[name]] = pa.array(some, mask=missing)
        return found

    def files(self, positions: Positions) -> pa.Array:
        """Return the names of the outputs that have the rows at `positions` [n], null where one is negative."""
        parts = np.searchsorted(self._ends, positions, side="right")
        return self._files.take(pa.array(parts, mask=positions < 0))

    def fields(self, names: Mapping[str, str]) -> list[pa.Field]:
        """Return the fields of these columns."""
        columns = self.columns(np.empty(0, dtype=np.int64), names)
        return [pa.field(name, column.type) for name, column in columns.items()]


def named(pattern: str, row: str) -> dict[str, str]:
    """Return names of the columns that name a row: `row` for the row itself, for others `pattern` with their own."""
    return {name: row if name == ROW else pattern.format(name) for name in (FILE, ROW, CHUNK)}


class KeptColumns:
    """The columns that all outputs kept of their inputs, with those that number rows. One type for all outputs.

    A kept column that is named as one of `taken` becomes `kept_NAME`.
    """

    def __init__(self, vectors: Vectors, names: RowNames, taken: Sequence[str]) -> None:
        self._vectors, self._names = vectors, names
        self._sources = (*vectors.kept, *vectors.row_columns)
        self._types = vectors.schema.remove_metadata()
        taken = (*taken, FILE) if names.has_files else taken
        new = renamed(vectors.kept, taken)
        fields = [self._types.field(name).with_name(other) for name, other in zip(vectors.kept, new, strict=True)]
        fields += [pa.field(FILE, pa.string())] * names.has_files
        self.schema = pa.schema([*fields, *(self._types.field(name) for name in vectors.row_columns)])

    def stream(self, own: Sequence[pa.Field], make: Callable[[slice], Sequence[pa.Array]], write: "Gathered") -> None:
        """Write all rows; `make` returns the columns `own` of the rows at some positions. Raises OutputError."""
        schema = pa.schema([*self.schema, *own])
        for begin, batch in self._vectors.batches(self._sources):
            if batch.num_rows:
                where = slice(begin, begin + batch.num_rows)
                with casts_as_output_errors():
                    columns = pa.Table.from_batches([batch]).select(list(self._sources)).cast(self._types).columns
                if self._names.has_files:
                    files = self._names.files(np.arange(where.start, where.stop))
                    columns.insert(len(self._vectors.kept), files)
                write(pa.table([*columns, *make(where)], schema=schema))


class Gathered:
    """Writes tables together until they are large enough for a row group."""

    def __init__(self, write: Callable[[pa.Table], object]) -> None:
        self._write = write
        self._held: list[pa.Table] = []
        self._rows = self._bytes = 0

    def __call__(self, table: pa.Table) -> None:
        self._held.append(table)
        self._rows, self._bytes = self._rows + table.num_rows, self._bytes + table.nbytes
        if self._rows >= ROWS_AT_ONCE or self._bytes >= BYTES_AT_ONCE:
            self.end()

    def end(self) -> None:
        """Write what is held."""
        if self._held:
            self._write(pa.concat_tables(self._held).combine_chunks())
            self._held, self._rows, self._bytes = [], 0, 0


def require_other_files(vectors: Vectors, others: Vectors) -> None:
    """Raise UsageError if both sets have the same file, whose rows would all be near themselves."""
    own = {name for part in vectors.parts for name in _names(part)}
    for part in others.parts:
        if own & _names(part):
            raise UsageError(f"--against: {part.name} would be compared with itself: leave it out on a side")


def _names(part: Part) -> set[str]:
    """Return the path of a file, and the name by which it was given: the address, if the path is that of a copy."""
    return {str(part.output.path.resolve()), part.name}
