"""Reads CSV and TSV files, whose first record names the columns. All columns are text: `007` stays `007`.

An empty field is null, a quoted empty one is an empty text, as in DuckDB and PostgreSQL. A record with another number
of fields than the first is a bad row: all its columns are null. Records are counted by going through the file once,
and reading always begins at the start: only a parser knows whether a line end is inside quotes.

pyarrow stops at a bad record that is not UTF-8. A file with such bytes, at any place, is therefore given to it as
Latin-1, in which all bytes are characters, and its values are turned back into bytes: slower, but nothing is lost.
"""

from codecs import BOM_UTF8, getincrementaldecoder
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from csv import Error as CsvError
from csv import field_size_limit, reader
from dataclasses import dataclass, replace
from functools import partial
from io import RawIOBase, TextIOWrapper
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
from pyarrow import csv

from fastvec.corpus.columns import with_bad_rows
from fastvec.corpus.formats.files import File
from fastvec.corpus.formats.lines import Compression, open_bytes
from fastvec.errors import InputError

# a record has to fit into a block; the larger ones are for files with larger records
BLOCK_BYTES = (4 << 20, 128 << 20)
HEADER_BYTES = 1 << 20
DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class Delimited:
    """The records of a CSV or TSV file, as one group of rows."""

    marks_bad_rows: ClassVar[bool] = True
    seeks: ClassVar[bool] = False
    path: File
    compression: Compression | None
    delimiter: str
    quoted: bool
    utf8: bool
    block_bytes: int
    schema: pa.Schema
    group_rows: tuple[int, ...]

    @classmethod
    def open(
        cls, path: File, compression: Compression | None, *, tabs: bool, check: Callable[[], None] = lambda: None
    ) -> "Delimited":
        """Read the first record and count the others. With `tabs`, the delimiter is a tab.

        `check` is called often meanwhile, and may raise to stop that.

        Raises InputError for a record that is longer than 128 MiB, and for quotes that are open at the end.
        """
        with open_bytes(path, compression) as file:
            lines = iter(partial(file.readline, HEADER_BYTES), b"")
            header = next((line for line in lines if line.strip()), b"").decode(errors="replace")
        delimiter = "\t" if tabs else max(DELIMITERS, key=header.count)
        quoted = not tabs or _is_quoted(path, compression)
        one = cls(path, compression, delimiter, quoted, True, 0, pa.schema([]), ())
        try:
            return one._in_blocks(check)
        except UnicodeDecodeError:
            return replace(one, utf8=False)._in_blocks(check)

    def _in_blocks(self, check: Callable[[], None]) -> "Delimited":
        for block_bytes in BLOCK_BYTES:
            try:
                return replace(self, block_bytes=block_bytes)._counted(check)
            except pa.ArrowInvalid as error:
                if "straddling" not in str(error):
                    raise
        raise InputError(f"{self.path}: a record is longer than {BLOCK_BYTES[-1]:,} bytes: is a quote not closed?")

    def _counted(self, check: Callable[[], None]) -> "Delimited":
        with self._reader(None, []) as opened:
            try:
                names = [name if self.utf8 else name.encode("latin-1").decode() for name in opened.schema.names]
            except UnicodeDecodeError:
                raise InputError(f"{self.path}: a column name is not UTF-8; convert the file with iconv") from None
        schema = pa.schema([(name, pa.string()) for name in names])
        named = replace(self, schema=schema)
        last = pa.array([])
        rows = 0
        for batch in named._batches(schema.names[-1:]):
            check()
            rows += batch.num_rows
            last = batch.column(0)[-1:] if batch.num_rows else last
        if len(last) and b"\n" in (last.cast(pa.binary())[0].as_py() or b"") and not self._ends_with_quote():
            raise InputError(f"{self.path}: the quotes that begin in its last record, {rows + 1}, are not closed")
        return replace(named, group_rows=(rows,))

    def read(self, columns: Sequence[str], first_group: int, skip: int) -> Iterator[pa.RecordBatch]:
        """Yield the named columns, from row `skip` of the only group on, and a last column that marks bad rows."""
        for batch in self._batches(columns):
            if skip < batch.num_rows:
                yield batch.slice(skip)
            skip = max(skip - batch.num_rows, 0)

    def places(self, rows: Sequence[int]) -> Iterator[dict[str, int]]:
        """Yield the 1-based number of the record of each of `rows`; the first record names the columns."""
        return ({"record": row + 2} for row in rows)

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        bad: list[int] = []  # rows not yielded yet; the reader leaves them out
        row = 0
        with self._reader(columns, bad) as opened:
            nothing = pa.RecordBatch.from_pylist([], pa.schema([(name, pa.string()) for name in columns]))
            for batch in opened:
                texts = batch.columns if self.utf8 else [_as_bytes(text) for text in batch.columns]
                full = _with_gaps(pa.RecordBatch.from_arrays(texts, schema=nothing.schema), row, bad)
                yield full
                row += full.num_rows
        if bad:
            yield _with_gaps(nothing, row, bad)

    @contextmanager
    def _reader(self, columns: Sequence[str] | None, bad: list[int]) -> Iterator[Any]:
        """Open the file; the reader adds the row of each bad record to `bad`, before the batch that it would be in."""

        def skip(record: Any) -> str:
            bad.append(record.number - 2)
            return "skip"

        parse = csv.ParseOptions(
            delimiter=self.delimiter,
            quote_char='"' if self.quoted else False,
            newlines_in_values=self.quoted,
            invalid_row_handler=skip,
            ignore_empty_lines=len(self.schema) != 1,  # in a single column, an empty line is a null
        )
        if columns is not None and not self.utf8:
            columns = [name.encode().decode("latin-1") for name in columns]
        convert = csv.ConvertOptions(
            check_utf8=False,
            include_columns=columns,
            column_types=dict.fromkeys(columns or (), pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        )
        read = csv.ReadOptions(use_threads=False, block_size=self.block_bytes if self.utf8 else 2 * self.block_bytes)
        with (
            open_bytes(self.path, self.compression) as file,
            csv.open_csv(
                self._seen_by_pyarrow(file), read_options=read, parse_options=parse, convert_options=convert
            ) as opened,
        ):
            yield opened

    def _seen_by_pyarrow(self, file: BinaryIO) -> BinaryIO | RawIOBase:
        if not self.utf8:
            return _Latin1(file)
        return file if self.group_rows else _Utf8(file)  # the pass that counts the rows shows whether it is UTF-8

    def _ends_with_quote(self) -> bool:
        tail = b""
        with open_bytes(self.path, self.compression) as file:
            while block := file.read(HEADER_BYTES):
                tail = (tail + block)[-16:]
        return tail.rstrip(b"\r\n").endswith(b'"')


class _Utf8(RawIOBase):
    """The bytes of a file. Raises UnicodeDecodeError before it returns any that are not UTF-8."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._decoder = file, getincrementaldecoder("utf-8")()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._decoder.decode(data, final=not data)
        return data


class _Latin1(_Utf8):
    """The bytes of a file, each of which becomes a character, in UTF-8; without a byte order mark."""

    _mark = BOM_UTF8

    def _read(self, size: int) -> bytes:
        mark, self._mark = self._mark, b""
        return self._file.read(size // 2).removeprefix(mark).decode("latin-1").encode()


def _as_bytes(texts: pa.Array) -> pa.Array:
    """Turn characters, read by `_Latin1`, back into bytes."""
    values = [None if text is None else text.encode("latin-1") for text in texts.to_pylist()]
    return pa.array(values, pa.binary()).view(pa.string())


def _with_gaps(batch: pa.RecordBatch, first_row: int, bad: list[int]) -> pa.RecordBatch:
    """Return the batch with its bad rows, and a last column that marks them.

    The batch begins at row `first_row` and lacks the rows `bad`, which ascend; those inside or just after it are
    removed from the list.
    """
    places = np.array(bad, dtype=np.int64) - first_row
    count = int(np.searchsorted(places - np.arange(len(bad)), batch.num_rows, side="right"))
    is_bad = np.zeros(batch.num_rows + count, dtype=np.bool_)
    is_bad[places[:count]] = True
    del bad[:count]
    if count:
        batch = batch.take(pa.array(np.cumsum(~is_bad) - 1, mask=is_bad))
    return with_bad_rows(batch, is_bad)


def _is_quoted(path: File, compression: Compression | None) -> bool:
    """Return whether a TSV file follows the rules of quoting, and has quotes at all.

    By its standard TSV has no quotes, and `"` is a part of the text; many tools write it as CSV with tabs.
    """
    with open_bytes(path, compression) as file:
        lines = iter(partial(file.readline, HEADER_BYTES), b"")
        if not any(line.startswith(b'"') or b'\t"' in line for line in lines):
            return False
    usual = field_size_limit(BLOCK_BYTES[-1])
    try:
        with open_bytes(path, compression) as file:
            records = reader(TextIOWrapper(file, errors="replace", newline=""), delimiter="\t", strict=True)
            deque(records, maxlen=0)
    except CsvError:
        return False
    finally:
        field_size_limit(usual)
    return True
