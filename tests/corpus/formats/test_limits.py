"""The limits on pages and buffers: what legitimate writers write is read, and no more is looked at than needed."""

from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from benchmarks.fuzzing.mutations import page_offsets, with_edited_footer, with_page_header
from fastvec.corpus.formats import arrow_buffers, parquet_pages
from fastvec.corpus.formats.source import open_source
from fastvec.corpus.formats.thrift import BINARY, Decoder, Field
from fastvec.errors import InputError
from tests.corpus.hostile.bombs import DECOMPRESSED, HUGE, column, field

MIB = 1 << 20
CREATED_BY, TOTAL_COMPRESSED = 6, 7  # numbers of fields of a footer and of a column chunk's metadata
DATA_V1, DATA_V2, COUNT = 5, 8, 1  # of a page header


def texts(path: Path, first_row: int = 0) -> list[str]:
    source = open_source(path)
    return [text for batch in source.batches(["text"], first_row=first_row) for text in batch[0].to_pylist()]


def ten_pages(path: Path, **options: str) -> bytes:
    """Write ten pages of two texts each in one row group."""
    table = pa.table({"text": [f"text {i}" for i in range(20)]})
    pq.write_table(
        table, path, data_page_size=1, write_batch_size=2, use_dictionary=False, store_schema=False, **options
    )
    return path.read_bytes()


def test_a_chunk_that_leaves_out_its_dictionarys_header_is_read(tmp_path: Path) -> None:
    """As parquet-mr up to 1.2.8 wrote it."""
    path = tmp_path / "old.parquet"
    file, values = BytesIO(), [f"{i % 200}" for i in range(1000)]
    pq.write_table(pa.table({"text": values}), file, store_schema=False)
    content = file.getvalue()
    header = Decoder(content, min(page_offsets(content)))
    begin = header.position
    header.struct()

    def edit(footer: list[Field]) -> None:
        field(column(footer), TOTAL_COMPRESSED).value -= header.position - begin
        footer[:] = [one for one in footer if one.id < CREATED_BY]
        footer.append(Field(CREATED_BY, BINARY, b"parquet-mr version 1.2.8 (build 1)"))

    path.write_bytes(with_edited_footer(content, edit))

    assert texts(path) == values


@pytest.mark.parametrize("codec", ["zstd", "brotli"])
def test_a_page_is_read_up_to_the_size_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    path = tmp_path / "long.parquet"
    pq.write_table(pa.table({"text": ["x" * MIB] * 2}), path, compression=codec, use_dictionary=False)
    page = 2 * (MIB + 4) + 6  # with the lengths, and the levels
    monkeypatch.setattr(parquet_pages, "memory_bytes", lambda: page)
    assert [len(text) for text in texts(path)] == [MIB, MIB]

    monkeypatch.setattr(parquet_pages, "memory_bytes", lambda: page - 1)
    with pytest.raises(
        InputError, match=r"a page takes 2,097,166 bytes, and the memory has 2,097,165: .* with write_ba"
    ):
        texts(path)


def test_pages_of_more_than_512_mib_are_read_where_the_memory_has_room() -> None:
    page = parquet_pages.Page(size=1 << 20, room=1 << 20, decompressed=HUGE, values=1024, is_dictionary=False)

    assert parquet_pages._problem(page, 6, 1 << 31) is None
    assert "claims to be" in str(parquet_pages._problem(page._replace(size=1 << 10), 6, 1 << 31))
    assert "a dictionary has 1,024 values in 1,023 bytes" in str(
        parquet_pages._problem(page._replace(decompressed=1023, is_dictionary=True), 6, 1 << 31)
    )


def test_pages_are_checked_just_ahead_of_the_rows(tmp_path: Path) -> None:
    """The last page is damaged: rows of the first ones arrive before it is looked at."""
    path = tmp_path / "pages.parquet"
    content = ten_pages(path)
    offset = max(page_offsets(content))
    for _ in range(9):
        decoder = Decoder(content, offset)
        size = next(one.value for one in decoder.struct() if one.id == 3)
        offset = decoder.position + size

    def edit(header: list[Field]) -> None:
        field(header, DECOMPRESSED).value = HUGE

    path.write_bytes(with_page_header(content, offset, edit))

    batches = open_source(path).batches(["text"])
    assert next(batches).num_rows == 16
    with pytest.raises(InputError, match="claims to be 2,147,483,647 decompressed"):
        list(batches)


def test_a_header_of_another_type_does_not_count_as_values(tmp_path: Path) -> None:
    """Otherwise the pages after it would not be looked at."""
    path = tmp_path / "pages.parquet"
    content = ten_pages(path, compression="none")
    first = max(page_offsets(content))

    def add(header: list[Field]) -> None:
        header.append(Field(DATA_V2, 12, [Field(COUNT, 5, 1 << 20)]))

    decoder = Decoder(content, first)
    size = field(decoder.struct(), 3).value
    second = decoder.position + size

    def claim(header: list[Field]) -> None:
        field(header, 3).value = HUGE

    path.write_bytes(with_page_header(with_page_header(content, second, claim), first, add))

    with pytest.raises(InputError, match="a page of 2,147,483,647 bytes ends"):
        texts(path)


def test_many_small_pages_and_a_file_that_is_read_again_take_few_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pages.parquet"
    ten_pages(path)
    reads, walks = [], []
    init, list_places = parquet_pages._Window.__init__, Decoder.list_places

    class Counted:
        def __init__(self, file: BinaryIO) -> None:
            self.seek, self._file = file.seek, file

        def read(self, size: int) -> bytes:
            reads.append(size)
            return self._file.read(size)

    def counted(decoder: Decoder, number: int) -> list[int]:
        walks.append(number)
        return list_places(decoder, number)

    monkeypatch.setattr(
        parquet_pages._Window, "__init__", lambda window, file: init(window, cast(BinaryIO, Counted(file)))
    )
    monkeypatch.setattr(Decoder, "list_places", counted)
    source = open_source(path)

    for _ in range(3):
        assert sum(batch.num_rows for batch in source.batches(["text"])) == 20

    assert len(reads) == 3
    assert walks.count(parquet_pages.ROW_GROUPS) == 1


@pytest.mark.parametrize("deltas", [False, True])
def test_a_dictionary_that_replaces_another_one_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deltas: bool
) -> None:
    path = tmp_path / "rows.stream"
    values = [f"{i:05}" + "x" * 1000 for i in range(40)]
    options = ipc.IpcWriteOptions(compression="zstd", emit_dictionary_deltas=deltas)
    schema = pa.schema({"text": pa.dictionary(pa.int32(), pa.string())})
    with ipc.new_stream(str(path), schema, options=options) as writer:
        for count in range(10, 41, 10):
            used = values[:count]
            column = pa.DictionaryArray.from_arrays(pa.array(range(count), pa.int32()), used)
            writer.write_batch(pa.record_batch([column], schema))
    whole = 40 * 1005 + 4 * (40 + 4)  # with the offsets, of which each delta has one more than values
    monkeypatch.setattr(arrow_buffers, "memory_bytes", lambda: whole)
    assert len([row for batch in open_source(path).batches(["text"]) for row in batch[0]]) == 100

    monkeypatch.setattr(arrow_buffers, "memory_bytes", lambda: 40 * 1005)
    with pytest.raises(
        InputError, match=r"and the memory has 40,200: write smaller .* to_feather\(path, chunksize=1000"
    ):
        open_source(path)
