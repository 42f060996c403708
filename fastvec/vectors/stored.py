"""Reads the vectors of finished outputs in blocks, by position over all of them.

Shapes: n rows of all outputs, b of a block, D dimensions of a vector, W values that store it (D, or D / 8 if binary).
"""

import logging
import os
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc as ipc

from fastvec.errors import OutputError, UsageError, one_line, printable
from fastvec.fingerprint import SHOWN_DIFFERENCES, fingerprint_differences
from fastvec.output import parquet_file
from fastvec.output.merge import OWN_TO_A_RUN
from fastvec.output.reader import PASSAGE_COLUMNS, SHARD, Array, Output, read_output
from fastvec.output.vector_column import FloatArray, from_values
from fastvec.output.verify import check_columns, require_intact
from fastvec.shards.folder import is_folder, open_folder
from fastvec.shards.verify import open_shard, require_manifest
from fastvec.stores.address import Address, is_remote
from fastvec.stores.spool import fetched
from fastvec.vectors.unified import casts_as_output_errors, unified

logger = logging.getLogger(__name__)

# the fields of a fingerprint that may differ between outputs whose vectors can be compared
_OWN = (*OWN_TO_A_RUN, "merged", SHARD, "keep")
SMALLEST_NORM = 1e-12  # as in `encoding.similarity`, whose import takes a second: a zero vector stays zero


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows: the first has the position `begin`.

    `values` [b, W] are as stored, in memory or mapped from the file; `valid` [b] is false for rows without a vector,
    whose values mean nothing; None if all have one.
    """

    begin: int
    values: Array
    valid: npt.NDArray[np.bool_] | None
    ranges: FloatArray | None  # [D], if int8

    def __len__(self) -> int:
        return len(self.values)

    @property
    def present(self) -> npt.NDArray[np.intp]:
        """The rows of the block that have a vector, which ascend."""
        return np.arange(len(self)) if self.valid is None else np.flatnonzero(self.valid)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file of one of the outputs, and the position of its first row.

    `name` is the file's for messages, and `source` the output as it was given: the file or its folder.
    """

    output: Output
    name: str
    source: str
    begin: int

    @property
    def end(self) -> int:
        return self.begin + self.output.rows

    @cached_property
    def batch_begins(self) -> list[int]:
        """The rows at which record batches, or row groups, begin, and the number of rows."""
        return [0, *accumulate(self._batch_rows())]

    def _batch_rows(self) -> Sequence[int]:
        if not self.output.is_parquet:
            return [block.rows for block in self.output.blocks]
        with parquet_file.opened(self.output.path) as file:
            return [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]

    @cached_property
    def _reader(self) -> ipc.RecordBatchFileReader:
        """The mapped file. It stays mapped, so that a second search does not wait for its pages again."""
        return ipc.open_file(_mapped(self.output.path))

    def batches(self, columns: Sequence[str], first: int, last: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield the record batches, or row groups in pieces, from `first` to `last`, each with its first row.

        Batches of an Arrow file are mapped, not read. Raises OutputError if one cannot be read.
        """
        path, index, row = self.output.path, first, self.batch_begins[first]
        try:
            if self.output.is_parquet:
                with parquet_file.opened(path) as file:
                    for index in range(first, last + 1):
                        for batch in parquet_file.pieces(file, index, columns):
                            yield row, batch
                            row += batch.num_rows
                return
            for index in range(first, last + 1):
                batch = self._reader.get_batch(index).select(list(columns))
                batch.validate()
                yield row, batch
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise OutputError(f"{self.name}: batch {index} cannot be read: {one_line(error)}") from error


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """The vectors of one column of several outputs. A position counts the rows over all of them, from 0.

    `kept_schema` has the columns copied from the inputs that all of them have, of types that one type can hold.
    """

    parts: tuple[Part, ...]
    column: str
    kept_schema: pa.Schema
    opened: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # inputs whose texts were read

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of the columns copied from the inputs."""
        return tuple(self.kept_schema.names)

    @property
    def schema(self) -> pa.Schema:
        """The kept columns, and those that number a row, as they are in all outputs."""
        return pa.schema([*self.kept_schema, *(self.first.schema.field(name) for name in self.row_columns)])

    @property
    def first(self) -> Output:
        """The first output, for what all have in common."""
        return self.parts[0].output

    @property
    def rows(self) -> int:
        return self.parts[-1].end

    @property
    def paths(self) -> list[Path]:
        """The files that are read, and the local inputs that they were made of: what no result may replace."""
        inputs = {file["uri"] for part in self.parts for file in part.output.inputs}
        return [*(part.output.path for part in self.parts), *(Path(uri) for uri in inputs if not is_remote(uri))]

    @property
    def dims(self) -> int:
        return self.first.dims

    @property
    def dtype(self) -> str:
        return self.first.vector_dtype

    @property
    def row_columns(self) -> tuple[str, ...]:
        """The columns that number a row: `row`, and those of passages if rows are passages."""
        return ("row", *(name for name, _ in PASSAGE_COLUMNS)) if self.first.has_passages else ("row",)

    def require_intact(self) -> None:
        """Compare each byte with its checksum. Raises OutputError if a file is damaged."""
        for part in self.parts:
            require_intact(part.output, part.name)

    def blocks(self, rows: int, *, begin: int = 0, end: int | None = None) -> Iterator[Block]:
        """Yield the vectors from the position `begin` up to `end` in blocks of at most `rows`.

        A block ends where a record batch of its file ends. Raises OutputError if a file cannot be read.
        """
        end = self.rows if end is None else min(end, self.rows)
        for part in self.parts:
            low, high = max(begin - part.begin, 0), min(end - part.begin, part.output.rows)
            if low >= high:
                continue
            first, last = (bisect_right(part.batch_begins, row) - 1 for row in (low, high - 1))
            for start, batch in part.batches([self.column], first, last):
                cut = batch.slice(max(low - start, 0), max(high - start, 0) - max(low - start, 0))
                if not cut.num_rows:  # a piece of a row group outside of the block
                    continue
                size = -(-cut.num_rows // max(-(-cut.num_rows // rows), 1))  # of equal blocks: no small last one
                for offset in range(0, cut.num_rows, size):
                    yield self._block(part, cut.slice(offset, size), part.begin + max(low, start) + offset)

    def _block(self, part: Part, batch: pa.RecordBatch, begin: int) -> Block:
        values, valid = part.output.vectors(batch, self.column)
        return Block(begin, values, valid if batch.column(self.column).null_count else None, part.output.ranges)

    def floats(self, block: Block, *, unit: bool = False) -> FloatArray:
        """Return the vectors of a block [b, D] in float32, those of rows without one all 0.

        Bits become 1 and -1. With `unit`, every vector has length 1, but for those of length 0. Float32 vectors that
        need no change are not copied.
        """
        values = block.values if self.dtype == "float32" else from_values(block.values, self.dtype, block.ranges)
        if block.valid is not None:
            values = np.where(block.valid[:, None], values, np.float32(0))
        if unit and not (self.first.normalize and self.dtype == "float32"):
            lengths = np.sqrt(np.einsum("bd,bd->b", values, values))[:, None]
            values = values / np.maximum(lengths, np.float32(SMALLEST_NORM))
        return values

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield `columns` of all rows in record batches, each with the position of its first row."""
        for part in self.parts:
            for start, batch in part.batches(columns, 0, len(part.batch_begins) - 2):
                yield part.begin + start, batch

    def take(self, positions: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Return the rows at `positions` [n], in this order, of `columns` of the outputs.

        Reads the record batches that have one of them, each once.
        """
        order = np.argsort(positions, kind="stable")
        ascending = positions[order]
        taken: list[pa.RecordBatch] = []
        for part in self.parts:
            low, high = np.searchsorted(ascending, [part.begin, part.end])
            taken += _taken(part, ascending[low:high] - part.begin, columns)
        if not taken:
            return pa.schema([self.first.schema.field(name) for name in columns]).remove_metadata().empty_table()
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        tables = [pa.Table.from_batches([one]) for one in taken]
        with casts_as_output_errors():
            return pa.concat_tables(tables, promote_options="permissive").take(back)

    @property
    def has_several(self) -> bool:
        """Whether rows are those of several outputs, so that their numbers are not enough to tell them apart."""
        return len({part.source for part in self.parts}) > 1

    def sources(self, positions: npt.NDArray[np.int64]) -> list[str]:
        """Return the output, as it was given, that has each of `positions`."""
        ends = [part.end for part in self.parts]
        return [self.parts[bisect_right(ends, position)].source for position in positions.tolist()]


def _mapped(path: Path) -> pa.Buffer:
    """Map a file, without a descriptor that stays open: an output may have thousands of shards."""
    with pa.memory_map(os.fsencode(path)) as source:
        return source.read_buffer()


def _taken(part: Part, rows: npt.NDArray[np.int64], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield `rows` of a part, which ascend, in one or several record batches without metadata."""
    batch_of = np.searchsorted(part.batch_begins, rows, side="right") - 1
    for index in np.unique(batch_of).tolist():
        own = rows[batch_of == index]
        for start, batch in part.batches(columns, index, index):
            inside = own[(own >= start) & (own < start + batch.num_rows)] - start
            if len(inside):
                yield batch.take(pa.array(inside)).replace_schema_metadata(None)


@contextmanager
def open_vectors(files: Sequence[str | Path], *, vector_column: str | None = None) -> Iterator[Vectors]:
    """Open finished outputs, files or folders of shards, for the time of the block. Those of a store are copied first.

    Raises UsageError without files and for a `vector_column` that they do not have; OutputError if a file is not a
    finished output, or differs from the first in what its vectors mean.
    """
    if not files:
        raise UsageError("no output was given: name a file that fastvec embed wrote")
    if len({os.path.realpath(file) for file in files}) < len(files):
        raise UsageError("an output was given twice: its rows would be found twice")
    with ExitStack() as copies:
        parts: list[Part] = []
        for source, name, output in _outputs(files, copies):
            for check in check_columns(output):
                if not check.passed:
                    raise OutputError(f"{name} does not match its metadata: {check.name}: {check.detail}")
            parts.append(Part(output=output, name=name, source=source, begin=parts[-1].end if parts else 0))
            require_comparable(parts[0], parts[-1])
        column = _chosen(parts[0], vector_column)
        yield Vectors(parts=tuple(parts), column=column, kept_schema=_kept_schema(parts))


def _outputs(files: Sequence[str | Path], copies: ExitStack) -> Iterator[tuple[str, str, Output]]:
    for file in files:
        if is_folder(file):
            folder = open_folder(file)
            manifest = require_manifest(folder)
            for shard in manifest.shards:
                path = copies.enter_context(folder.fetched(shard.file))
                yield folder.location, f"{folder.location}/{shard.file}", open_shard(path, manifest, shard)
        elif is_remote(file):
            address = Address.parse(str(file))
            try:
                path = copies.enter_context(fetched(address))
            except FileNotFoundError:
                raise OutputError(f"{address}: no such file or bucket") from None
            yield str(address), str(address), read_output(path)
        else:
            yield str(file), str(file), read_output(Path(file))


def renamed(names: Sequence[str], taken: Collection[str]) -> list[str]:
    """Return new names of kept columns for a table that has columns named as `taken`: `kept_NAME` for these."""
    used, found = {*names, *taken}, []
    for name in names:
        new = name
        if name in taken:
            while new in used:
                new = f"kept_{new}"
            used.add(new)
        found.append(new)
    return found


def require_comparable(first: Part, other: Part) -> None:
    """Raise OutputError if the vectors of two outputs differ in what they mean."""
    problems = fingerprint_differences(_settings(first.output), _settings(other.output))[:SHOWN_DIFFERENCES]
    if problems:
        raise OutputError(f"{other.name} cannot be compared with {first.name}, they differ: {'; '.join(problems)}")


def _settings(output: Output) -> Mapping[str, Any]:
    return {name: value for name, value in output.fingerprint.items() if name not in _OWN}


def _chosen(part: Part, name: str | None) -> str:
    names = part.output.vector_columns
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        found = f"{len(names)} columns of vectors" if name is None else f"no column of vectors named {name!r}"
        raise UsageError(f"{part.name} has {found}: choose --vector-column {' or '.join(names)}")
    return name


def _kept_schema(parts: Sequence[Part]) -> pa.Schema:
    fields: list[pa.Field] = []
    for name in parts[0].output.kept_columns:
        if all(name in part.output.kept_columns for part in parts[1:]):
            own = [part.output.schema.field(name).remove_metadata() for part in parts]
            if (common := unified(own)) is not None:
                fields.append(common)
                continue
            types = dict.fromkeys(str(one.type) for one in own)
            logger.warning("the kept column %s is left out: it is %s", printable(name), " and ".join(types))
    return pa.schema(fields)
