"""Reads text files by lines, compressed or not, and text files with one text per line.

A file is gone through once when it is opened, to count its rows; groups of lines take the place of row groups, so that
reading can begin at each. A compressed file has to be read from its start.
"""

import os
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.corpus.formats.files import READ_BYTES, File, open_stream
from fastvec.errors import InputError

COLUMN = "text"
GROUP_LINES = 16_384
BATCH_LINES, BATCH_BYTES = 1024, 1 << 20
MAX_LINE_BYTES = 1 << 29  # a file without line ends is not read into memory
LINE_END = ord("\n")
WHITE_SPACE = np.isin(np.arange(256), list(b" \t\n\r\v\f"))  # of each byte, as `bytes.isspace` says

Compression = Literal["gzip", "zstd"]
COMPRESSED_SUFFIXES = (".gz", ".zst")


class Group(NamedTuple):
    """A run of rows: how many, and the byte offset and 1-based number of its first line."""

    rows: int
    offset: int
    line: int


def plain_suffix(path: File) -> str:
    """Return the suffix of a file in lower case, without that of a compression."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSED_SUFFIXES else name.suffix


def open_bytes(path: File, compression: Compression | None) -> BinaryIO:
    """Open a file for reading its bytes, decompressed."""
    if compression is None:
        return open_stream(path)
    source = pa.OSFile(os.fsencode(path)) if isinstance(path, Path) else pa.PythonFile(open_stream(path), mode="r")
    return BufferedReader(pa.CompressedInputStream(source, compression), READ_BYTES)


@dataclass(frozen=True, slots=True)
class LineFile:
    """The lines of a file; with `skip_blank`, lines of white space alone are no rows."""

    path: File
    compression: Compression | None
    skip_blank: bool
    groups: tuple[Group, ...]
    lines: int  # blank ones too

    @classmethod
    def open(
        cls,
        path: File,
        compression: Compression | None,
        *,
        skip_blank: bool,
        check: Callable[[], None] = lambda: None,
    ) -> "LineFile":
        """Go through the file once, to count its rows; `check` is called often, and may raise to stop that.

        Raises InputError for a line above MAX_LINE_BYTES.
        """
        groups: list[tuple[int, int]] = []
        rows = lines = 0
        with open_bytes(path, compression) as file:
            for some in _lines_of_blocks(file, skip_blank=skip_blank):
                check()
                if some.longest > MAX_LINE_BYTES:
                    raise InputError(
                        f"{path}: line {lines + 1} is longer than {MAX_LINE_BYTES:,} bytes; expected one text or "
                        "object per line"
                    )
                first = -rows % GROUP_LINES
                groups += [(int(some.offsets[i]), lines + int(i) + 1) for i in some.rows[first::GROUP_LINES]]
                rows, lines = rows + len(some.rows), lines + len(some.offsets)
        # the first group begins with the file, for its byte order mark and for compressed files
        starts = [(0, 1), *groups[1:]] if groups else []
        sizes = [GROUP_LINES] * (len(starts) - 1) + [rows - GROUP_LINES * (len(starts) - 1)] * bool(starts)
        counted = tuple(Group(size, *start) for size, start in zip(sizes, starts, strict=True))
        return cls(path, compression, skip_blank, counted, lines)

    @property
    def group_rows(self) -> tuple[int, ...]:
        return tuple(group.rows for group in self.groups)

    @property
    def seeks(self) -> bool:
        """Whether reading can begin at a group; a compressed file is read from its start."""
        return self.compression is None

    def batches(self, first_group: int = 0, skip: int = 0) -> Iterator[list[bytes]]:
        """Yield the lines of the rows from row `skip` of a group on, without line ends, in lists of bounded size.

        A byte order mark at the start of the file is removed.
        """
        batch: list[bytes] = []
        size = 0
        for _, line in self._rows(first_group, skip):
            batch.append(line.rstrip(b"\r\n"))
            size += len(line)
            if size >= BATCH_BYTES or len(batch) == BATCH_LINES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def numbers(self, rows: Sequence[int]) -> Iterator[int]:
        """Yield the 1-based line number of each of `rows`, which ascend; only a file with blank lines is read again."""
        if self.lines == sum(self.group_rows):
            yield from (row + 1 for row in rows)
            return
        numbers = (number for number, _ in self._rows(0, 0))
        found, number = -1, 0
        for row in rows:
            while found < row:
                found, number = found + 1, next(numbers)
            yield number

    def _rows(self, first_group: int, skip: int) -> Iterator[tuple[int, bytes]]:
        """Yield the line number and the line of each row."""
        group = self.groups[first_group]
        with open_bytes(self.path, self.compression) as file:
            if self.compression is None:
                file.seek(group.offset)
            else:
                skip += sum(before.rows for before in self.groups[:first_group])
                group = self.groups[0]
            lines = enumerate(_lines(file), group.line)
            rows = ((number, line) for number, line in lines if not (self.skip_blank and line.isspace()))
            for number, line in islice(rows, skip, None):
                yield number, line.removeprefix(BOM_UTF8) if number == 1 else line


def _lines(file: BinaryIO) -> Iterator[bytes]:
    return iter(partial(file.readline, MAX_LINE_BYTES + 1), b"")


class _Lines(NamedTuple):
    """The lines that end in a block of a file: their offsets in the file [n], and which of them are rows [r].

    `longest` is how many bytes are known so far of the first line, the only one that can be longer than a block.
    """

    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    longest: int


def _lines_of_blocks(file: BinaryIO, *, skip_blank: bool) -> Iterator[_Lines]:
    """Yield the lines of each block of a file; a line that no line end ends comes last, by itself."""
    position = begun = 0  # where the block begins, and the line that goes on in it
    is_blank = True  # what is known of that line
    none = np.empty(0, dtype=np.int64)
    for block in iter(partial(file.read, READ_BYTES), b""):
        data = np.frombuffer(block, dtype=np.uint8)
        ends = np.flatnonzero(data == LINE_END)
        if not len(ends):
            is_blank = is_blank and block.isspace()
            position += len(block)
            yield _Lines(none, none, position - begun)
            continue
        starts = ends[:-1] + 1
        blank = np.zeros(len(ends), dtype=np.bool_)
        if skip_blank:
            blank[0] = is_blank and block[: ends[0] + 1].isspace()
            blank[1:] = starts == ends[1:]
            for i in np.flatnonzero(WHITE_SPACE[data[starts]] & ~blank[1:]):
                blank[i + 1] = block[starts[i] : ends[i + 1]].isspace()
        offsets = np.concatenate([[begun], position + starts])
        yield _Lines(offsets, np.flatnonzero(~blank), position + int(ends[0]) + 1 - begun)
        begun, is_blank = position + int(ends[-1]) + 1, block[ends[-1] + 1 :].isspace() or ends[-1] + 1 == len(block)
        position += len(block)
    if position > begun:
        rows = none if skip_blank and is_blank else np.zeros(1, dtype=np.int64)
        yield _Lines(np.array([begun], dtype=np.int64), rows, position - begun)


@dataclass(frozen=True, slots=True)
class TextLines:
    """The lines of a text file, as the column `text`."""

    marks_bad_rows: ClassVar[bool] = False
    file: LineFile

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(COLUMN, pa.string())])

    @property
    def group_rows(self) -> tuple[int, ...]:
        return self.file.group_rows

    @property
    def seeks(self) -> bool:
        """See `LineFile.seeks`."""
        return self.file.seeks

    def read(self, columns: Sequence[str], first_group: int, skip: int) -> Iterator[pa.RecordBatch]:
        """Yield the lines as `columns`, from row `skip` of group `first_group` on."""
        for lines in self.file.batches(first_group, skip):
            texts = pa.array(lines, pa.binary()).view(pa.string())  # which may be invalid UTF-8, as in other formats
            yield pa.RecordBatch.from_arrays([texts] * len(columns), list(columns))

    def places(self, rows: Sequence[int]) -> Iterator[dict[str, int]]:
        """Yield the line number of each of `rows`, which ascend."""
        return ({"line": number} for number in self.file.numbers(rows))
