"""Opens one input file: detects its format by its first bytes and its suffix, and reads its rows in record batches."""

import re
import time
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from fastvec.corpus.formats.arrow import ArrowRows
from fastvec.corpus.formats.delimited import Delimited
from fastvec.corpus.formats.errors import ENCRYPTED, EmptyFileError, as_input_errors
from fastvec.corpus.formats.files import File, identity, open_random, require_unchanged
from fastvec.corpus.formats.json_lines import JsonLines
from fastvec.corpus.formats.lines import Compression, LineFile, TextLines, open_bytes, plain_suffix
from fastvec.corpus.formats.parquet import ParquetRows, groups_of
from fastvec.corpus.text_column import short
from fastvec.errors import InputError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".txt",)
TAB_SUFFIXES = (".tsv", ".tab")
HEAD_BYTES = 64
CHECK_SECONDS = 10.0  # between two requests that ask whether a file of a store is unchanged
JSON_ARRAY = re.compile(rb"\[\s*[{\[]")  # refused by the reader of JSON lines, with a remedy


class Rows(Protocol):
    """The rows of a file of one format. Its groups are runs of rows that reading can begin at."""

    @property
    def schema(self) -> pa.Schema: ...
    @property
    def group_rows(self) -> tuple[int, ...]: ...
    @property
    def marks_bad_rows(self) -> bool:
        """Whether a batch has one more column, the last, that is true for rows which could not be read."""

    @property
    def seeks(self) -> bool:
        """Whether reading from a group on leaves out the rows before it; otherwise they are read too."""

    def read(self, columns: Sequence[str], first_group: int, skip: int) -> Iterator[pa.RecordBatch]:
        """Yield the named columns from row `skip` of a group on, in order, in batches of bounded size."""

    def places(self, rows: Sequence[int]) -> Iterator[dict[str, int]]:
        """Yield where each of `rows`, which ascend, is in the file, by a unit that people can look up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An opened input file."""

    path: File
    size: int
    version: int | str
    content: Rows

    @property
    def schema(self) -> pa.Schema:
        return self.content.schema

    @property
    def group_rows(self) -> tuple[int, ...]:
        return self.content.group_rows

    @property
    def rows(self) -> int:
        return sum(self.group_rows)

    def batches(self, columns: Sequence[str], *, first_row: int = 0) -> Iterator[pa.RecordBatch]:
        """Yield the named columns from `first_row` on, in order; string columns may be dictionary-encoded.

        `a.b` names the field b of the struct a if no column has that name. If `content.marks_bad_rows`, one more
        column, the last, is true for rows that could not be read; their other columns are null.

        Raises InputError if the file changed since it was opened, or cannot be read; the error names the row group
        of a Parquet or Arrow file, if known. An Arrow file is memory-mapped, so a batch can change until the caller has
        copied it: call `require_unchanged` afterwards.
        """
        if first_row >= self.rows:
            return
        self.require_unchanged()
        group_rows = self.group_rows
        group = next(groups_of(group_rows, [first_row]))
        skip = first_row - sum(group_rows[:group])
        with as_input_errors(self.path):
            checked = time.monotonic()
            for batch in self.content.read(columns, group, skip):
                if isinstance(self.path, Path) or time.monotonic() - checked > CHECK_SECONDS:
                    self.require_unchanged()
                    checked = time.monotonic()
                yield batch

    def require_unchanged(self) -> None:
        """Raise InputError if the file's size, modification time or version changed since it was opened."""
        with as_input_errors(self.path):
            require_unchanged(self.path, self.size, self.version)


def open_source(path: File, *, text_otherwise: bool = False, check: Callable[[], None] = lambda: None) -> Source:
    """Open a file: read its footer, or count its rows. With `text_otherwise`, a file of no known format is text.

    `check` is called often meanwhile, and may raise to stop that.

    Raises InputError, which names the file, if it is incomplete, of no known format, or repeats a column name.
    """
    with as_input_errors(path):
        size, version = identity(path)
        check()
        content = _opened(path, size, text_otherwise, check)
        if min(content.group_rows, default=0) < 0:
            raise InputError(f"{path}: the footer has a negative row count: the file is corrupt")
        names = Counter(content.schema.names)
    for name, count in names.items():
        if count > 1:
            raise InputError(f"{path}: {count} columns are named {short(name, 40)!r}; rename all but one")
    return Source(path=path, size=size, version=version, content=content)


def _opened(path: File, size: int, text_otherwise: bool, check: Callable[[], None]) -> Rows:
    if isinstance(path, Path) and not path.is_file():
        raise InputError(f"{path}: neither a file nor a folder")
    if size == 0 and plain_suffix(path) not in TEXT_SUFFIXES:
        reason = "the file is empty (0 bytes)"
        if plain_suffix(path) in (*JSON_SUFFIXES, *TAB_SUFFIXES, ".csv"):
            raise EmptyFileError(path, reason)
        raise InputError(f"{path}: {reason}")
    with open_random(path) as file:
        head = file.read(HEAD_BYTES)
        file.seek(max(size - 6, 0))
        tail = file.read(6)
    if head.startswith(b"PAR1") and tail.endswith(b"PAR1"):
        return ParquetRows.open(path)
    if head.startswith(b"ARROW1") and tail == b"ARROW1":
        return ArrowRows.open(path, stream=False)
    if head.startswith(b"\xff\xff\xff\xff"):
        return ArrowRows.open(path, stream=True)
    compression = _compression(head)
    with open_bytes(path, compression) as text:
        start = text.read(HEAD_BYTES)
    problem = _why_no_text(path, size, start, tail, compressed=compression is not None)
    if problem is None:
        suffix, shown = plain_suffix(path), start.removeprefix(BOM_UTF8).lstrip()
        if suffix in TEXT_SUFFIXES:
            return TextLines(LineFile.open(path, compression, skip_blank=False, check=check))
        if suffix in JSON_SUFFIXES or shown.startswith(b"{") or (text_otherwise and JSON_ARRAY.match(shown)):
            return JsonLines.open(LineFile.open(path, compression, skip_blank=True, check=check))
        if suffix == ".csv" or suffix in TAB_SUFFIXES:
            return Delimited.open(path, compression, tabs=suffix in TAB_SUFFIXES, check=check)
        if text_otherwise:
            return TextLines(LineFile.open(path, compression, skip_blank=False, check=check))
        problem = _unknown(path, start)
    raise InputError(f"{path}: {problem}")


def _compression(head: bytes) -> Compression | None:
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    return "zstd" if head.startswith(b"\x28\xb5\x2f\xfd") else None


def _why_no_text(path: File, size: int, start: bytes, tail: bytes, *, compressed: bool) -> str | None:
    """Return why a file that is neither Parquet nor Arrow is not read as text either."""
    if start.startswith(b"PARE") or tail.endswith(b"PARE"):
        return ENCRYPTED
    if start.startswith((b"PAR1", b"ARROW1")):
        if compressed:
            return "a compressed Parquet or Arrow file; decompress it"
        return f"no footer at its end ({size} bytes): the file is truncated, or still being written"
    if start.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if start.startswith(b"FEA1"):
        return "Feather version 1; write it as version 2 or as Parquet"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8"
    if start.startswith((b"BZh", b"\xfd7zXZ", b"PK\x03\x04")):
        return "compressed as bzip2, xz or zip; gzip and zstd are read, so decompress it or compress it anew"
    if b"\0" in start and plain_suffix(path) not in (".parquet", ".arrow"):
        return f"not text: it starts with {start[:8]!r}"
    return None


def _unknown(path: File, start: bytes) -> str:
    if plain_suffix(path) in (".parquet", ".arrow"):
        return f"neither Parquet nor Arrow, despite its suffix (it starts with {start[:8]!r}); download it again"
    return (
        f"of no known format (it starts with {start[:8]!r}): expected Parquet, Arrow, JSON lines, or a name that ends "
        "in .csv, .tsv or .txt"
    )
