"""Checks the page headers of a Parquet file before pyarrow reads the pages.

A header says how long its page is, as it is stored and decompressed, and pyarrow allocates and fills as much at once: a
flipped bit is 2 GiB of memory, and 60 KB of zstd can be a page of 2 GiB.
"""

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fastvec.corpus.formats.thrift import Decoder, Field, Items
from fastvec.corpus.text_column import short
from fastvec.errors import InputError
from fastvec.system.limits import memory_bytes

MOST_NUMBER = (1 << 31) - 1  # of the format: sizes and counts are signed numbers of 32 bits
MOST_LIST_ITEMS = 1_000_000  # in a footer, as in pyarrow: e.g. row groups
TAIL_BYTES = 8  # the length of the footer and PAR1
# read at once, for the headers of several pages: pyarrow then reads the same bytes from the system's cache
WINDOW_BYTES = 1 << 18
LONGEST_HEADER = 1 << 24  # that pyarrow reads
# parquet-mr up to 1.2.8 leaves the header of a dictionary out of the size of a column chunk. One has seven numbers of
# at most 5 bytes, and as many bytes again begin and end its fields; pyarrow allows 100 bytes too.
UNCOUNTED_BYTES = 100
DICTIONARY_ENTRY_BYTES = 16  # that pyarrow reserves for each value
# codecs: how often their formats can repeat what a byte stands for. In snappy 3 bytes are a copy of 64; a byte of LZ4
# adds 255 to a length; deflate codes 258 bytes in 2 bits; in zstd 4 bytes are a block of 128 KiB; brotli sets no bound.
UNCOMPRESSED = 0
MOST_GROWTH = {0: 1, 1: 22, 2: 1032, 5: 255, 6: 1 << 15, 7: 255}
UNREADABLE = (IndexError, ValueError, RecursionError)
# numbers of fields: of a footer, a row group, a column chunk and its metadata
ROW_GROUPS, COLUMNS, METADATA = 4, 1, 3
PATH, CODEC, VALUES, TOTAL_COMPRESSED, DATA_PAGE, DICTIONARY_PAGE = 3, 4, 5, 7, 9, 11
# of a page header, and of the header of a data page or dictionary in it
TYPE, DECOMPRESSED, COMPRESSED, DATA, DICTIONARY, DATA_V2 = 1, 2, 3, 5, 7, 8
COUNT = 1
HEADER_OF_TYPE = {0: DATA, 2: DICTIONARY, 3: DATA_V2}


class Page(NamedTuple):
    """What a header says: the page's bytes in the file and decompressed, and how many values it has.

    `room` is how many bytes the column chunk has from the page on.
    """

    size: int
    room: int
    decompressed: int
    values: int
    is_dictionary: bool


def find_footer(file: BinaryIO) -> tuple[int, int]:
    """Return where the footer of a file begins, and its length."""
    end = max(file.seek(0, os.SEEK_END) - TAIL_BYTES, 0)
    file.seek(end)
    length = min(int.from_bytes(file.read(4), "little"), end)
    return end - length, length


def most_list_items(path: Path) -> int:
    """Return how many items a list in the footer of a file can have, at least 1."""
    with path.open("rb") as file:
        return max(1, min(find_footer(file)[1], MOST_LIST_ITEMS))


class PageHeaders:
    """The page headers of an opened file, of the column chunks that `leaves` has the numbers of.

    Its values tell whether a row can have several values in the column. The footer is decoded here too: pyarrow ends
    the process when asked for a column chunk that is encrypted. `places` are the row groups' in the footer, for the
    next time that the file is opened, or empty: to find them takes a quarter of a second for a footer of 1 MB.
    """

    def __init__(self, path: Path, file: BinaryIO, leaves: Mapping[int, bool], places: "array[int]") -> None:
        self._path, self._file, self._leaves, self._places = path, file, leaves, places
        self._memory = memory_bytes() or MOST_NUMBER
        begin, length = find_footer(file)
        file.seek(begin)
        self._footer = file.read(length)
        if not places:
            try:
                places.extend(Decoder(self._footer).list_places(ROW_GROUPS))
            except UNREADABLE:
                raise InputError(f"{path}: the footer cannot be read: corrupt file") from None

    def group(self, group: int) -> "GroupHeaders":
        """Return the headers of a row group, of which none is read yet."""
        return GroupHeaders((self._checked(group, chunk), several) for chunk, several in self._chunks(group))

    def _chunks(self, group: int) -> Iterator[tuple[dict[int, Any], bool]]:
        """Yield the metadata of each column chunk that is read, and whether a row can have several values there."""
        if group >= len(self._places):
            return
        try:
            chunks = Decoder(self._footer, self._places[group]).list_places(COLUMNS)
            for leaf, several in self._leaves.items():
                if leaf < len(chunks):
                    metadata = _by_number(Decoder(self._footer, chunks[leaf]).struct()).get(METADATA)
                    if isinstance(metadata, list):
                        yield _by_number(metadata), several
        except UNREADABLE:
            raise InputError(f"{self._path}: row group {group} of the footer cannot be read: corrupt file") from None

    def _checked(self, group: int, chunk: dict[int, Any]) -> Iterator[int]:
        """Yield the number of values of each page; raises InputError before one that is too large."""
        for page in self._pages(chunk):
            problem = _problem(page, chunk.get(CODEC), self._memory)
            if problem is not None:
                parts = (str(part, errors="replace") for part in _items(chunk.get(PATH)) if isinstance(part, bytes))
                raise InputError(f"{self._path}: row group {group}, column {short('.'.join(parts), 40)}: {problem}")
            yield 0 if page.is_dictionary else page.values

    def _pages(self, chunk: dict[int, Any]) -> Iterator[Page]:
        begin, dictionary, total = chunk.get(DATA_PAGE), chunk.get(DICTIONARY_PAGE), chunk.get(TOTAL_COMPRESSED)
        values = chunk.get(VALUES)
        if not (isinstance(begin, int) and isinstance(total, int) and isinstance(values, int)):
            return
        if isinstance(dictionary, int) and 0 < dictionary < begin:
            begin = dictionary
        end = begin + total + UNCOUNTED_BYTES
        window = _Window(self._file)
        while 0 <= begin < end and values > 0:  # pyarrow also reads on until it has all values
            header = window.header(begin, end)
            if header is None:
                return
            length, fields = header
            size, decompressed = fields.get(COMPRESSED), fields.get(DECOMPRESSED)
            if not (isinstance(size, int) and isinstance(decompressed, int)):
                return
            begin += length
            type_ = fields.get(TYPE)
            kind = HEADER_OF_TYPE.get(type_, -1) if isinstance(type_, int) else -1
            page = Page(size, end - begin, decompressed, _count(fields.get(kind)), is_dictionary=kind == DICTIONARY)
            values -= 0 if page.is_dictionary else page.values
            yield page
            begin += max(size, 0)


class GroupHeaders:
    """The headers of a row group's pages, read and checked just ahead of the pages themselves."""

    def __init__(self, chunks: Iterable[tuple[Iterator[int], bool]]) -> None:
        self._chunks = [(pages, several, 0) for pages, several in chunks]

    def check(self, rows: int) -> None:
        """Raise InputError if a page is too large that pyarrow needs to read the first `rows` of the group.

        A header that cannot be read is left to pyarrow, which names the problem.
        """
        for index, (pages, several, values) in enumerate(self._chunks):
            while (several or values <= rows) and (more := next(pages, None)) is not None:
                values += more
            self._chunks[index] = pages, several, values


class _Window:
    """The bytes of a file from some place on, in which page headers are found that ascend."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._data, self._begin = file, b"", 0

    def header(self, begin: int, end: int) -> tuple[int, dict[int, Any]] | None:
        """Return the length and the fields of the page header at `begin`, or None if there is none before `end`."""
        for most in (0, WINDOW_BYTES, LONGEST_HEADER):
            if most:
                self._file.seek(begin)
                self._data, self._begin = self._file.read(min(most, end - begin)), begin
            decoder = Decoder(self._data, begin - self._begin)
            try:
                fields = decoder.struct()
            except IndexError:
                continue
            except UNREADABLE:
                return None
            return decoder.position + self._begin - begin, _by_number(fields)
        return None


def _problem(page: Page, codec: Any, memory: int) -> str | None:
    if not all(0 <= number <= MOST_NUMBER for number in (page.size, page.decompressed, page.values)):
        return "a page has a negative size, or one of more than 31 bits: corrupt file"
    if page.size > page.room:
        return (
            f"a page of {page.size:,} bytes ends {page.size - page.room:,} bytes after its column chunk: corrupt file"
        )
    decompressed = page.size if codec == UNCOMPRESSED else page.decompressed
    if isinstance(codec, int) and decompressed > MOST_GROWTH.get(codec, MOST_NUMBER) * page.size:
        return f"a page of {page.size:,} bytes claims to be {decompressed:,} decompressed: corrupt file"
    if page.is_dictionary and page.values > decompressed:
        return f"a dictionary has {page.values:,} values in {decompressed:,} bytes: corrupt file"
    needed = decompressed + DICTIONARY_ENTRY_BYTES * page.values * page.is_dictionary
    if needed > memory:
        return (
            f"a page takes {needed:,} bytes, and the memory has {memory:,}: write smaller pages, in pyarrow with "
            "write_batch_size=64"
        )
    return None


def _by_number(fields: Any) -> dict[int, Any]:
    return {field.id: field.value for field in fields if isinstance(field, Field)} if isinstance(fields, list) else {}


def _items(value: Any) -> Sequence[Any]:
    return value.values if isinstance(value, Items) else ()


def _count(header: Any) -> int:
    count = _by_number(header).get(COUNT, 0)
    return count if isinstance(count, int) else 0
