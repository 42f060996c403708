"""Changes files at random: any bytes, the text of text formats, and the fields of Parquet's footers and page headers.

A changed field is encoded anew, with the lengths and offsets that depend on it, so that a reader gets as far as to it.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from random import Random

from benchmarks.fuzzing.thrift import encode
from fastvec.corpus.formats.thrift import BINARY, FALSE, INTEGERS, LIST, STRUCT, TRUE, Decoder, Field, Items

EDGES = [0, 1, -1, 2, 7, 127, 128, 255, 1 << 15, (1 << 16) - 1, 1 << 20, 1 << 28, (1 << 31) - 1, 1 << 31, -(1 << 31)]
EDGES += [(1 << 32) - 1, 1 << 32, 1 << 40, (1 << 62) - 1, (1 << 63) - 1, -(1 << 63)]
TOKENS = [b"\n", b"\r\n", b"\r", b'"', b'""', b",", b";", b"\t", b"\\", b"{", b"}", b"[", b"]", b":", b"null", b"\0"]
TOKENS += [
    b"\\ud800",
    b"\\u0000",
    b"1e999",
    b"-0",
    b"NaN",
    b"[" * 300,
    b'{"a":' * 300,
    b"\xef\xbb\xbf",
    b"\xff",
    b"\x1b[2J",
]
TOKENS += [b'{"text": "x"}', b'"2020-01-01"', b"123456789012345678901234567890", b"x" * 5000]
FOOTER_TAIL = 8  # the footer's length and PAR1
# paths of field numbers, in Parquet's definition: row groups, their columns, the metadata of one
ROW_GROUPS, COLUMNS, COLUMN_METADATA = 4, 1, 3
COMPRESSED_SIZE, DATA_PAGE, INDEX_PAGE, DICTIONARY_PAGE = 7, 9, 10, 11

Mutation = Callable[[bytes, Random], bytes]


def mutated(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Return `data` after one to four changes; `others` are files of which parts may be inserted."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
        choices: list[Mutation] = [flip, overwrite, cut, repeat, truncate, token]
        if data.endswith(b"PAR1"):
            choices = [*choices, *[footer_field] * 8, *[page_header] * 6]
        if random.random() < 0.05:
            data = splice(data, random.choice(others), random)
        else:
            data = random.choice(choices)(data, random)
    return data


def flip(data: bytes, random: Random) -> bytes:
    """Flip a bit."""
    if not data:
        return data
    changed = bytearray(data)
    changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, random: Random) -> bytes:
    """Write an integer near the limits of a type, as Arrow's messages and all lengths hold them."""
    size = random.choice((1, 2, 4, 8))
    place = random.randrange(len(data) + 1)
    place -= place % random.choice((1, size))
    value = random.choice(EDGES) & (1 << 8 * size) - 1
    return data[:place] + value.to_bytes(size, "little") + data[place + size :]


def cut(data: bytes, random: Random) -> bytes:
    """Leave out some bytes."""
    place = random.randrange(len(data) + 1)
    return data[:place] + data[place + random.choice((1, 4, 8, 64)) :]


def repeat(data: bytes, random: Random) -> bytes:
    """Repeat some bytes."""
    place = random.randrange(len(data) + 1)
    return data[:place] + data[place : place + random.choice((1, 4, 8, 64))] * random.choice((2, 3, 50)) + data[place:]


def truncate(data: bytes, random: Random) -> bytes:
    """Leave out the end."""
    return data[: random.randrange(len(data) + 1)]


def token(data: bytes, random: Random) -> bytes:
    """Insert a token of a text format."""
    place = random.randrange(len(data) + 1)
    return data[:place] + random.choice(TOKENS) + data[place:]


def splice(data: bytes, other: bytes, random: Random) -> bytes:
    """Return the beginning of one file and the end of another."""
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


def footer_field(data: bytes, random: Random) -> bytes:
    """Change a field of a Parquet file's footer; the file is returned as it is if it has none."""
    footer = _struct(data, _footer_begin(data))
    if footer is None:
        return data
    change(footer, random)
    return with_footer(data[: _footer_begin(data)], footer)


def with_edited_footer(data: bytes, edit: Callable[[list[Field]], None]) -> bytes:
    """Return a Parquet file with its footer edited."""
    footer = Decoder(data, _footer_begin(data)).struct()
    edit(footer)
    return with_footer(data[: _footer_begin(data)], footer)


def with_footer(body: bytes, footer: list[Field]) -> bytes:
    """Return a Parquet file with this footer."""
    encoded = encode(footer)
    return body + encoded + len(encoded).to_bytes(4, "little") + b"PAR1"


def _footer_begin(data: bytes) -> int:
    return len(data) - FOOTER_TAIL - int.from_bytes(data[-8:-4], "little")


def page_header(data: bytes, random: Random) -> bytes:
    """Change a field of a page's header; the file is returned as it is if it has no pages."""
    offsets = page_offsets(data)
    return with_page_header(data, random.choice(offsets), lambda header: change(header, random)) if offsets else data


def page_offsets(data: bytes) -> list[int]:
    """Return the offsets of the first page, and the first page of data, of each column chunk."""
    footer = _struct(data, _footer_begin(data)) or []
    return [place for column in _column_metadata(footer) for place in _pages(column)]


def with_page_header(data: bytes, begin: int, edit: Callable[[list[Field]], None]) -> bytes:
    """Return the file with the page header at `begin` edited, and with what is behind it moved."""
    footer_begin = _footer_begin(data)
    footer = _struct(data, footer_begin) or []
    decoder = Decoder(data, begin)
    header = _struct(data, begin, decoder)
    if header is None or decoder.position > footer_begin:
        return data
    edit(header)
    encoded = encode(header)
    longer = len(encoded) - (decoder.position - begin)
    for column in _column_metadata(footer):
        places = _pages(column)
        for field in column:
            if field.kind not in INTEGERS:
                continue
            if field.id in (DATA_PAGE, INDEX_PAGE, DICTIONARY_PAGE) and field.value > begin:
                field.value += longer
            if field.id == COMPRESSED_SIZE and begin in places:
                field.value += longer
    return with_footer(data[:begin] + encoded + data[decoder.position : footer_begin], footer)


def change(struct: list[Field], random: Random) -> None:
    """Change one field of a struct, or of the structs in it."""
    every = list(_structs(struct))
    owner = random.choice([one for one in every if one] or [struct])
    if not owner:
        return
    place = random.randrange(len(owner))
    field = owner[place]
    if random.random() < 0.1:
        del owner[place]
    elif field.kind in INTEGERS:
        field.value = random.choice((*EDGES, field.value + 1, field.value - 1, -field.value, 2 * field.value))
    elif field.kind == BINARY:
        field.value = random.choice((b"", b"\xff", b"text", b"\n\x1b[2J", field.value * 2, bytes(1000), b"a.b"))
    elif field.kind == LIST and field.value.values:
        values = field.value.values
        item = random.randrange(len(values))
        values[item:item] = values[item : item + 1] * random.choice((1, 1, 2, 1000))
        if random.random() < 0.5:
            del values[item : item + random.choice((1, 2, 2000))]
    elif field.kind == STRUCT:
        field.value = deepcopy(random.choice(every)) if random.random() < 0.3 else field.value[: len(field.value) // 2]
    elif field.kind in (TRUE, FALSE):
        field.value = not field.value


def _structs(struct: list[Field]) -> Iterator[list[Field]]:
    """Yield a struct and all structs in it."""
    yield struct
    for field in struct:
        inside = field.value.values if isinstance(field.value, Items) else [field.value]
        for value in inside:
            if isinstance(value, list):
                yield from _structs(value)


def _struct(data: bytes, begin: int, decoder: Decoder | None = None) -> list[Field] | None:
    if not 0 <= begin < len(data):
        return None
    try:
        return (decoder or Decoder(data, begin)).struct()
    except (IndexError, ValueError, RecursionError, MemoryError, OverflowError):
        return None


def _column_metadata(footer: list[Field]) -> Iterator[list[Field]]:
    for group in _structs_in(footer, ROW_GROUPS):
        for chunk in _structs_in(group, COLUMNS):
            yield from (field.value for field in chunk if field.id == COLUMN_METADATA and isinstance(field.value, list))


def _structs_in(struct: list[Field], number: int) -> Iterator[list[Field]]:
    """Yield the structs of the list that is field `number`."""
    for field in struct:
        if field.id == number and isinstance(field.value, Items):
            yield from (value for value in field.value.values if isinstance(value, list))


def _pages(column: list[Field]) -> list[int]:
    """Return the offsets of a column chunk's first pages."""
    return [field.value for field in column if field.id in (DATA_PAGE, DICTIONARY_PAGE) and field.kind in INTEGERS]
