"""Opens one input file: detects its format, reads its schema, and reads its rows in record batches of bounded size.

A file's declared sizes are not trusted: 300 bytes of Parquet can decode to gigabytes, through a dictionary or
compression. So Parquet is read through a buffered stream, and the decoded sizes of earlier rows determine how many rows
the next read takes. pyarrow's `read_dictionary` was rejected: it helps only with dictionaries, it copies the
dictionary with each read, which is 30 times slower if all texts of a row group fit into one dictionary, and it cannot
read delta encodings. Arrow files are memory-mapped. Two units are always decoded whole: a Parquet page and a compressed
Arrow record batch.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from fastvec.corpus.columns import array_at, path_to, row_bytes
from fastvec.corpus.locations import SUFFIXES
from fastvec.corpus.text_lines import COLUMN, SUFFIX, line_groups, read_lines
from fastvec.errors import InputError

FIRST_READ_ROWS = 16  # before any row's size is known
MAX_READ_ROWS = 256  # limits memory if huge rows follow small ones; larger reads are no faster
READ_BYTES = 8 << 20  # target decoded size of one Parquet read
ENCRYPTED = "encrypted Parquet; write it without encryption"
BUFFER_BYTES = 1 << 20  # compressed bytes buffered per column chunk; otherwise pyarrow reads the whole chunk


Paths = Mapping[str, tuple[str, ...]]  # column name to its path in a schema


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An opened input file. Its row groups are record batches in an Arrow file, and groups of lines in a text file."""

    path: Path
    size: int
    mtime_ns: int
    schema: pa.Schema
    group_rows: tuple[int, ...]
    kind: Literal["parquet", "arrow", "lines"]
    starts: tuple[int, ...] = ()  # byte offset of each group in a text file

    @property
    def rows(self) -> int:
        return sum(self.group_rows)

    def group_of(self, row: int) -> tuple[int, int]:
        """Return the row group that contains `row`, and the position of `row` in it."""
        for group, rows in enumerate(self.group_rows):
            if row < rows:
                return group, row
            row -= rows
        raise IndexError(f"row {row} is past the end of {self.path}")

    def batches(self, columns: Sequence[str], *, first_row: int = 0) -> Iterator[pa.RecordBatch]:
        """Yield the named columns from `first_row` on, in order; string columns may be dictionary-encoded.

        `a.b` names the field b of the struct a if no column has that name.

        Raises InputError if the file changed since it was opened, or cannot be read; the error names the row group
        of a Parquet or Arrow file, if known. An Arrow file is memory-mapped, so a batch can change until the caller has
        copied it: call `require_unchanged` afterwards.
        """
        if first_row >= self.rows:
            return
        self.require_unchanged()
        first_group, skip = self.group_of(first_row)
        if self.kind == "lines":
            with _as_input_errors(self.path):
                yield from read_lines(self.path, self.starts[first_group], skip)
        else:
            read = _read_parquet if self.kind == "parquet" else _read_arrow
            paths = {name: path_to(self.schema, name) or (name,) for name in columns}
            for batch in read(self, paths, first_group, skip):
                self.require_unchanged()
                yield batch

    def require_unchanged(self) -> None:
        """Raise InputError if the file's size or modification time changed since it was opened."""
        with _as_input_errors(self.path):
            stat = self.path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (self.size, self.mtime_ns):
            raise InputError(f"{self.path}: changed while it was being read; run the command again")


def open_source(path: Path, *, lines: bool = False) -> Source:
    """Open a Parquet or Arrow file by reading its footer; with `lines`, also a .txt file with one text per line.

    Raises InputError, which names the file, if it is not a complete Parquet or Arrow file or repeats a column name.
    """
    with _as_input_errors(path):
        stat = path.stat()
        if lines and path.suffix == SUFFIX:
            return _open_lines(path, stat.st_size, stat.st_mtime_ns)
        is_parquet = _is_parquet(path, stat.st_size)
        schema, group_rows = _parquet_footer(path) if is_parquet else _arrow_footer(path)
        if min(group_rows, default=0) < 0:
            raise InputError(f"{path}: the footer has a negative row count: the file is corrupt")
        names = Counter(schema.names)
    for name, count in names.items():
        if count > 1:
            raise InputError(f"{path}: {count} columns are named {name!r}; rename all but one")
    return Source(
        path=path,
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        schema=schema,
        group_rows=group_rows,
        kind="parquet" if is_parquet else "arrow",
    )


def _open_lines(path: Path, size: int, mtime_ns: int) -> Source:
    rows, starts = line_groups(path)
    schema = pa.schema([(COLUMN, pa.string())])
    return Source(path=path, size=size, mtime_ns=mtime_ns, schema=schema, group_rows=rows, kind="lines", starts=starts)


def _is_parquet(path: Path, size: int) -> bool:
    """Return whether the file is Parquet (True) or Arrow (False), by its magic bytes, not by its suffix.

    Raises InputError if it is neither.
    """
    if not path.is_file():
        raise InputError(f"{path}: neither a file nor a folder")
    if size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes)")
    with path.open("rb") as file:
        head = file.read(32)
        file.seek(max(size - 6, 0))
        tail = file.read(6)
    if head.startswith(b"PAR1") and tail.endswith(b"PAR1"):
        return True
    if head.startswith(b"ARROW1") and tail == b"ARROW1":
        return False
    raise InputError(f"{path}: {_what_it_is(path, head, tail)}")


def _what_it_is(path: Path, head: bytes, tail: bytes) -> str:
    if head.startswith(b"PARE") or tail.endswith(b"PARE"):
        return ENCRYPTED
    if head.startswith((b"PAR1", b"ARROW1")):
        return f"no footer at its end ({path.stat().st_size} bytes): the file is truncated, or still being written"
    if head.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if head.startswith(b"\xff\xff\xff\xff"):
        return "an Arrow stream; write it as an Arrow file (pyarrow.ipc.new_file) or as Parquet"
    if head.startswith(b"FEA1"):
        return "Feather version 1; write it as version 2 or as Parquet"
    if path.suffix in SUFFIXES:
        return f"neither Parquet nor an Arrow file, despite its suffix (it starts with {head[:8]!r}); download it again"
    target = path.with_suffix(".parquet").name
    return f"neither Parquet nor an Arrow file; convert it: duckdb -c \"COPY (FROM '{path.name}') TO '{target}'\""


def _parquet_footer(path: Path) -> tuple[pa.Schema, tuple[int, ...]]:
    with pq.ParquetFile(path) as file:
        metadata = file.metadata
        rows = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        return file.schema_arrow, rows


def _arrow_footer(path: Path) -> tuple[pa.Schema, tuple[int, ...]]:
    """Return the schema and the rows of each record batch.

    pyarrow reads a batch to tell its row count. Only one column is included, of a primitive type if there is one, so
    that no other column of a compressed batch is decoded.
    """
    with pa.memory_map(str(path)) as memory:
        with ipc.open_file(memory) as file:
            schema = file.schema
        narrow = [index for index, column in enumerate(schema) if pa.types.is_primitive(column.type)]
        options = ipc.IpcReadOptions(included_fields=(narrow or list(range(len(schema))))[:1])
        with ipc.open_file(memory, options=options) as file:
            return schema, tuple(file.get_batch(group).num_rows for group in range(file.num_record_batches))


def _read_parquet(source: Source, paths: Paths, first_group: int, skip: int) -> Iterator[pa.RecordBatch]:
    rows = FIRST_READ_ROWS
    with (
        _as_input_errors(source.path),
        pq.ParquetFile(
            source.path, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        ) as file,
    ):
        for group in range(first_group, len(source.group_rows)):
            with _as_input_errors(source.path, group):
                missing = source.group_rows[group]
                for batch in file.iter_batches(rows, row_groups=[group], columns=list(paths)):
                    batch = _select(batch, paths)
                    if skip < batch.num_rows:
                        yield batch.slice(skip)
                    skip = max(skip - batch.num_rows, 0)
                    missing -= batch.num_rows
                    size = sum(int(row_bytes(column).sum()) for column in batch.columns)
                    rows = max(1, min(2 * rows, READ_BYTES * batch.num_rows // max(size, 1), MAX_READ_ROWS))
                    file.reader.set_batch_size(rows)  # takes effect with the next batch
                if missing:
                    raise InputError(f"{source.path}: row group {group} has {missing} rows too few: corrupt file")


def _read_arrow(source: Source, paths: Paths, first_group: int, skip: int) -> Iterator[pa.RecordBatch]:
    tops = {source.schema.get_field_index(path[0]) for path in paths.values()}
    options = ipc.IpcReadOptions(included_fields=sorted(tops))
    with (
        _as_input_errors(source.path),
        pa.memory_map(str(source.path)) as memory,
        ipc.open_file(memory, options=options) as file,
    ):
        for group in range(first_group, len(source.group_rows)):
            with _as_input_errors(source.path, group):
                batch = file.get_batch(group)
                yield _select(batch, paths).slice(skip)
            skip = 0


def _select(batch: pa.RecordBatch, paths: Paths) -> pa.RecordBatch:
    """Return the validated columns at `paths`; without columns, the batch still has its number of rows."""
    if not paths:
        return batch.select([])
    return pa.RecordBatch.from_arrays([array_at(batch, path) for path in paths.values()], list(paths))


@contextmanager
def _as_input_errors(path: Path, group: int | None = None) -> Iterator[None]:
    """Turn read errors into a one-line InputError that names the file and, if given, the row group."""
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a column name that is not UTF-8
        place = "" if group is None else f" row group {group}"
        reason = str(error).partition("\n")[0][:200]
        told_by_arrow = not isinstance(error, OSError) or error.errno is None
        if told_by_arrow and re.search("encrypt|decrypt", reason.replace(str(path), ""), re.IGNORECASE):
            raise InputError(f"{path}: {ENCRYPTED}") from error
        raise InputError(f"{path}:{place} cannot be read: {reason}") from error
