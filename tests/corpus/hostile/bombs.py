"""Small files that claim, or decompress to, more than a machine has."""

import gzip
from collections.abc import Callable
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from benchmarks.fuzzing.mutations import page_offsets, with_edited_footer, with_page_header
from fastvec.corpus.formats.thrift import BINARY, I32, Field

GROUPS, COLUMNS, METADATA = 4, 1, 3  # numbers of fields of a footer
ROWS, GROUP_ROWS, VALUES, PATH, SCHEMA = 3, 3, 5, 3, 2
DECOMPRESSED, COMPRESSED, DICTIONARY, COUNT = 2, 3, 7, 1  # of a page header
ZSTD = b"\x28\xb5\x2f\xfd"
HUGE = (1 << 31) - 1


def parquet(*, dictionary: bool = False) -> bytes:
    """Return a file with three short texts in one page, after a dictionary if it has one."""
    file = BytesIO()
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), file, store_schema=False, use_dictionary=dictionary)
    return file.getvalue()


def field(struct: list[Field], number: int) -> Field:
    return next(one for one in struct if one.id == number)


def column(footer: list[Field]) -> list[Field]:
    """Return the metadata of the only column chunk."""
    chunk: list[Field] = field(group(footer), COLUMNS).value.values[0]
    metadata: list[Field] = field(chunk, METADATA).value
    return metadata


def group(footer: list[Field]) -> list[Field]:
    only: list[Field] = field(footer, GROUPS).value.values[0]
    return only


def page_claims(number: int, *, dictionary: bool = False) -> bytes:
    """Return a file whose first page's header claims HUGE in field `number`, or in that of its dictionary's header."""
    content = parquet(dictionary=dictionary)

    def edit(header: list[Field]) -> None:
        field(field(header, DICTIONARY).value if dictionary else header, number).value = HUGE

    return with_page_header(content, min(page_offsets(content)), edit)


def rows_claimed(rows: int, *, by_the_group: bool) -> bytes:
    """Return a file of which the footer, and also its only row group, claim so many rows."""

    def edit(footer: list[Field]) -> None:
        field(footer, ROWS).value = rows
        if by_the_group:
            field(group(footer), GROUP_ROWS).value = field(column(footer), VALUES).value = rows

    return with_edited_footer(parquet(), edit)


def nested(depth: int) -> bytes:
    """Return a file whose text is inside so many structs."""

    def edit(footer: list[Field]) -> None:
        root, leaf = field(footer, SCHEMA).value.values
        struct = [Field(3, I32, 1), Field(4, BINARY, b"g"), Field(5, I32, 1)]
        field(footer, SCHEMA).value.values[:] = [root, *[struct] * depth, leaf]
        field(column(footer), PATH).value.values[:] = [b"g"] * depth + [b"text"]

    return with_edited_footer(parquet(), edit)


def list_claims(items: int) -> bytes:
    """Return a footer that begins with a list of so many columns, and ends there."""
    count = bytes([items & 0x7F | 0x80, items >> 7 & 0x7F | 0x80, items >> 14])
    footer = b"\x15\x02\x19\xfc" + count
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def many_groups(count: int) -> bytes:
    """Return a file that lists its row group so many times."""

    def edit(footer: list[Field]) -> None:
        field(footer, ROWS).value *= count
        field(footer, GROUPS).value.values *= count

    return with_edited_footer(parquet(), edit)


def arrow_claims(size: int, *, stream: bool) -> bytes:
    """Return a file, or stream, with a compressed buffer that claims to decompress to so many bytes."""
    file, actual = BytesIO(), 123_457
    table = pa.table({"text": ["x" * actual]})
    options = ipc.IpcWriteOptions(compression="zstd")
    with (ipc.new_stream if stream else ipc.new_file)(file, table.schema, options=options) as writer:
        writer.write_table(table)
    content = file.getvalue()
    begin = content.rindex(ZSTD) - 8
    assert content[begin : begin + 8] == actual.to_bytes(8, "little")
    return content[:begin] + size.to_bytes(8, "little") + content[begin + 8 :]


def gzipped_lines(count: int, size: int) -> bytes:
    return gzip.compress(b'{"text": "%s"}\n' % (b"x" * size) * count, 1)


def lines_of_keys(count: int, keys: int, *, nested: bool) -> bytes:
    """Return objects of a megabyte in all, each with fields that no other has: as a table, 110 million nulls."""
    lines = []
    for line in range(count):
        fields = ",".join(f'"{number:x}":1' for number in range(line * keys, (line + 1) * keys))
        lines.append(f'{{"text":"a","by_id":{{{fields}}}}}' if nested else f'{{"text":"a",{fields}}}')
    return "\n".join(lines).encode()


def one_long_text(size: int) -> bytes:
    file = BytesIO()
    pq.write_table(pa.table({"text": ["a", "x" * size, "b"]}), file, compression="zstd")
    return file.getvalue()


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "stored.parquet": (lambda: page_claims(COMPRESSED), "row group 0, column text: a page of 2,147,483,647 bytes ends"),
    "page.parquet": (lambda: page_claims(DECOMPRESSED), " bytes claims to be 2,147,483,647 decompressed: "),
    "values.parquet": (lambda: page_claims(COUNT, dictionary=True), "a dictionary has 2,147,483,647 values in "),
    "rows.parquet": (lambda: rows_claimed(1 << 60, by_the_group=False), "rows, but 3 in row groups: corrupt file"),
    "group.parquet": (lambda: rows_claimed(1 << 60, by_the_group=True), "row group 0 has 1152921504606846973 rows too"),
    "negative.parquet": (lambda: rows_claimed(-3, by_the_group=True), "the footer has a negative row count"),
    "nested.parquet": (lambda: nested(100_000), "too deeply nested"),
    "list.parquet": (lambda: list_claims(1_000_000), "cannot be read: "),
    "buffer.arrow": (
        lambda: arrow_claims(1 << 60, stream=False),
        "decompress to 1,152,921,504,606,846,976 bytes, and the memory has ",
    ),
    "buffer.stream": (
        lambda: arrow_claims(1 << 60, stream=True),
        "decompress to 1,152,921,504,606,846,976 bytes, and the memory has ",
    ),
}
READ: dict[str, tuple[Callable[[], bytes], int]] = {
    "groups.parquet": (lambda: many_groups(300), 900),
    "lines.jsonl.gz": (lambda: gzipped_lines(300, 1 << 20), 300),
}
