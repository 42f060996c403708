"""Checks the page headers of a Parquet file before pyarrow reads the pages.

A header says how long its page is, as it is stored and decompressed, and pyarrow allocates and fills as much at once: a
flipped bit is 2 GiB of memory, and 60 KB of zstd can be a page of 2 GiB.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fastvec.corpus.formats.thrift import Decoder, Field, Items
from fastvec.corpus.text_column import short
from fastvec.errors import InputError

MOST_PAGE_BYTES = 1 << 29  # as many as a line of text may have
MOST_LIST_ITEMS = 1_000_000  # in a footer, as in pyarrow: e.g. row groups
TAIL_BYTES = 8  # the length of the footer and PAR1
HEADER_BYTES = (1 << 14, 1 << 24)  # read at once: most headers are shorter, and none that pyarrow reads is longer
UNREADABLE = (IndexError, ValueError, RecursionError)
# numbers of fields: of a footer, a row group, a column chunk and its metadata
ROW_GROUPS, COLUMNS, METADATA = 4, 1, 3
PATH, VALUES, TOTAL_COMPRESSED, DATA_PAGE, DICTIONARY_PAGE = 3, 5, 7, 9, 11
# of a page header, and of the header of a data page or dictionary in it
DECOMPRESSED, COMPRESSED, DATA, DICTIONARY, DATA_V2 = 2, 3, 5, 7, 8
COUNT = 1


class Page(NamedTuple):
    """What a header says: the page's bytes in the file and decompressed, and how many `values` a dictionary has.

    `room` is how many bytes the column chunk has from the page on.
    """

    size: int
    room: int
    decompressed: int
    values: int


def footer_bytes(path: Path) -> int:
    """Return the length of a file's footer, at least 1: no list in it has more items."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - TAIL_BYTES, 0))
        return max(1, min(int.from_bytes(file.read(4), "little"), size - TAIL_BYTES, MOST_LIST_ITEMS))


class PageHeaders:
    """The page headers of an opened file.

    The footer is decoded here too: pyarrow ends the process when asked for a column chunk that is encrypted.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        end = file.seek(0, os.SEEK_END) - TAIL_BYTES
        file.seek(max(end, 0))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(end - length, 0))
        self._footer = file.read(min(length, end))
        try:
            self._groups: Sequence[int] = Decoder(self._footer).list_places(ROW_GROUPS)
        except UNREADABLE:
            raise InputError(f"{path}: the footer cannot be read: corrupt file") from None

    def check(self, group: int, columns: Collection[str]) -> None:
        """Raise InputError if a page of a row group is larger than its column chunk or MOST_PAGE_BYTES.

        Only the pages of `columns`, and of fields of them, are looked at. A header that cannot be read is left to
        pyarrow, which names the problem.
        """
        for chunk in self._chunks(group):
            path = chunk.get(PATH)
            parts = [str(part, errors="replace") for part in _items(path) if isinstance(part, bytes)]
            if any(".".join(parts[:count]) in columns for count in range(1, len(parts) + 1)):
                problem = next((problem for problem in map(_problem, self._pages(chunk)) if problem), None)
                if problem is not None:
                    raise InputError(f"{self._path}: row group {group}, column {short('.'.join(parts), 40)}: {problem}")

    def _chunks(self, group: int) -> Iterator[dict[int, Any]]:
        """Yield the metadata of each column chunk of a row group."""
        if group >= len(self._groups):
            return
        try:
            fields = Decoder(self._footer, self._groups[group]).struct()
        except UNREADABLE:
            raise InputError(f"{self._path}: row group {group} of the footer cannot be read: corrupt file") from None
        for chunk in _items(_by_number(fields).get(COLUMNS)):
            metadata = _by_number(chunk).get(METADATA)
            if isinstance(metadata, list):
                yield _by_number(metadata)

    def _pages(self, chunk: dict[int, Any]) -> Iterator[Page]:
        begin, dictionary, total = chunk.get(DATA_PAGE), chunk.get(DICTIONARY_PAGE), chunk.get(TOTAL_COMPRESSED)
        values = chunk.get(VALUES)
        if not (isinstance(begin, int) and isinstance(total, int) and isinstance(values, int)):
            return
        if isinstance(dictionary, int) and 0 < dictionary < begin:
            begin = dictionary
        end = begin + total
        while 0 <= begin < end and values > 0:  # pyarrow also reads on until it has all values
            header = self._header(begin)
            if header is None:
                return
            length, fields = header
            size, decompressed = fields.get(COMPRESSED), fields.get(DECOMPRESSED)
            if not (isinstance(size, int) and isinstance(decompressed, int)):
                return
            begin += length
            values -= _count(fields.get(DATA)) + _count(fields.get(DATA_V2))
            yield Page(size, end - begin, decompressed, _count(fields.get(DICTIONARY)))
            begin += max(size, 0)

    def _header(self, begin: int) -> tuple[int, dict[int, Any]] | None:
        """Return the length and the fields of the page header at `begin`, or None if there is none."""
        for most in HEADER_BYTES:
            self._file.seek(begin)
            decoder = Decoder(self._file.read(most))
            try:
                fields = decoder.struct()
            except IndexError:
                continue
            except UNREADABLE:
                return None
            return decoder.position, _by_number(fields)
        return None


def _problem(page: Page) -> str | None:
    if page.decompressed > MOST_PAGE_BYTES:
        return (
            f"a page has {page.decompressed:,} bytes; pages above {MOST_PAGE_BYTES:,} are not read: write smaller ones"
        )
    if page.size < 0 or page.decompressed < 0:
        return "a page has a negative size: corrupt file"
    if page.size > page.room:
        return (
            f"a page of {page.size:,} bytes ends {page.size - page.room:,} bytes after its column chunk: corrupt file"
        )
    if page.values > page.decompressed:  # pyarrow reserves 16 bytes for each
        return f"a dictionary has {page.values:,} values in {page.decompressed:,} bytes: corrupt file"
    return None


def _by_number(fields: Any) -> dict[int, Any]:
    return {field.id: field.value for field in fields if isinstance(field, Field)} if isinstance(fields, list) else {}


def _items(value: Any) -> Sequence[Any]:
    return value.values if isinstance(value, Items) else ()


def _count(header: Any) -> int:
    count = _by_number(header).get(COUNT, 0)
    return count if isinstance(count, int) else 0
