import bz2
import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import feather

from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import ChunkLimits
from fastvec.errors import InputError
from tests.helpers.corpora import ALL, read, read_texts, texts, write_arrow, write_parquet, write_stream

WORDS = ["one", None, "", "four", "one", "ünïcode 😀"]
MIB = 1 << 20

Write = Callable[[Path], Path]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_parquet(path, texts(WORDS), group_rows=2),
        lambda path: write_parquet(path, texts(WORDS), compression="zstd", data_page_version="2.0"),
        lambda path: write_parquet(path, texts(WORDS), use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY"),
        lambda path: write_parquet(path, texts(WORDS), use_dictionary=False, column_encoding="DELTA_LENGTH_BYTE_ARRAY"),
        lambda path: write_arrow(path, texts(WORDS), group_rows=2),
        lambda path: write_arrow(path, texts(WORDS), group_rows=4, compression="zstd"),
        lambda path: write_arrow(path, texts(WORDS), compression="lz4"),
    ],
    ids=["parquet", "zstd-v2", "delta", "delta-length", "arrow", "arrow-zstd", "arrow-lz4"],
)
def test_every_format_is_told_by_its_bytes_not_by_its_name(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "corpus.data")

    assert read_texts(path) == WORDS


def duckdb_parquet(path: Path) -> None:
    words = texts(WORDS)  # DuckDB's query refers to this variable by name
    duckdb.sql(f"COPY words TO '{path}' (FORMAT parquet, PARQUET_VERSION v2)")
    assert words.num_rows == len(WORDS)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: pl.DataFrame({"text": WORDS}).write_parquet(path),
        lambda path: pl.DataFrame({"text": WORDS}).write_ipc(path, compression="zstd"),
        lambda path: pl.DataFrame({"text": WORDS}, schema={"text": pl.Categorical}).write_ipc(path),
        lambda path: feather.write_feather(texts(WORDS), path),
        duckdb_parquet,
    ],
    ids=["polars-parquet", "polars-arrow", "polars-categorical", "feather", "duckdb-parquet"],
)
def test_files_of_other_libraries_are_read(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "corpus")

    (chunk,) = read(tmp_path / "corpus", keep=["text"])

    assert chunk.texts.to_pylist() == chunk.kept["text"].to_pylist() == WORDS


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
@pytest.mark.parametrize(
    "type",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
        pa.dictionary(pa.uint32(), pa.string_view()),
    ],
    ids=str,
)
def test_every_type_of_text_is_read(tmp_path: Path, type: pa.DataType, write: Callable[..., Path]) -> None:
    if pa.types.is_dictionary(type):
        indices = pa.array([0, None, 1, 2, 0, 3], type.index_type)
        column = pa.DictionaryArray.from_arrays(indices, pa.array(["one", "", "four", "ünïcode 😀"], type.value_type))
    else:
        column = pa.array([None if word is None else word.encode() for word in WORDS], pa.binary()).cast(type)
    try:
        path = write(tmp_path / "corpus", pa.table({"text": column}), group_rows=4)
    except pa.ArrowNotImplementedError:
        pytest.skip(f"pyarrow does not write {type} to Parquet")

    assert read_texts(path, column="text") == WORDS


def write_bytes(content: bytes) -> Write:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


def cut(write: Write, size: int) -> Write:
    def write_cut(path: Path) -> Path:
        content = write(path).read_bytes()
        path.write_bytes(content[:size])
        return path

    return write_cut


def write_garbled(path: Path) -> Path:
    """Write a file with Parquet's magic bytes at both ends and no valid footer."""
    return write_bytes(b"PAR1" + b"garbled" * 9 + b"\x20\0\0\0PAR1")(path)


def write_duplicate_names(path: Path) -> Path:
    return write_arrow(path, pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_bytes(b""), "the file is empty (0 bytes)"),
        (
            write_bytes(b"id,text\n1,a\n"),
            "of no known format (it starts with b'id,text\\n'): expected Parquet, Arrow, JSON",
        ),
        (write_bytes(b"\xff\xfea\0"), "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8"),
        (write_bytes(bz2.compress(b"text")), "compressed as bzip2, xz or zip; gzip and zstd are read"),
        (write_bytes(b"\x7fELF\0\0"), "not text: it starts with b'\\x7fELF"),
        (write_bytes(gzip.compress(b"PAR1" + bytes(40))), "a compressed Parquet or Arrow file; decompress it"),
        (write_bytes(gzip.compress(b"PAR1" + bytes(40))[:-9]), "cannot be read: "),
        (write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "fetch it with `git lfs pull`"),
        (write_bytes(b"PARE" + bytes(40) + b"PARE"), "encrypted Parquet"),
        (write_bytes(b"FEA1" + bytes(40) + b"FEA1"), "Feather version 1"),
        (
            cut(lambda path: write_stream(path, texts(WORDS)), -8),
            "the Arrow stream has no end marker: it is truncated, or still being written",
        ),
        (
            cut(lambda path: write_parquet(path, texts(WORDS)), 99),
            "no footer at its end (99 bytes): the file is truncated",
        ),
        (
            cut(lambda path: write_arrow(path, texts(WORDS)), 99),
            "no footer at its end (99 bytes): the file is truncated",
        ),
        (write_garbled, "cannot be read: "),
        (write_duplicate_names, "2 columns are named 'text'"),
        (lambda path: Path("/dev/null"), "neither a file nor a folder"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_file_that_is_no_corpus_is_refused_in_one_line(tmp_path: Path, write: Write, message: str) -> None:
    path = write(tmp_path / "c.x")

    with pytest.raises(InputError, match=re.escape(message)) as refused:
        open_corpus([path])

    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["c.parquet", "c.arrow"])
def test_a_file_with_the_wrong_suffix_is_to_be_downloaded_again(tmp_path: Path, name: str) -> None:
    path = write_bytes(b"<!DOCTYPE html>\n")(tmp_path / name)
    with pytest.raises(InputError, match=r"despite its suffix \(it starts with b'<!DOCTYP'\); download it again"):
        open_corpus([path])


def flip(path: Path, needle: bytes) -> None:
    content = bytearray(path.read_bytes())
    assert content.count(needle) == 1
    content[content.index(needle)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("group_rows", [1, 5])
def test_a_bad_page_is_named_and_what_lies_beyond_it_can_be_read(tmp_path: Path, group_rows: int) -> None:
    words = [f"row number {row}" for row in range(30)]
    path = write_parquet(
        tmp_path / "c.parquet",
        texts([*words]),
        group_rows=group_rows,
        use_dictionary=False,
        compression="none",
        write_statistics=False,
        write_page_checksum=True,
    )
    flip(path, b"row number 17")
    bad_group = 17 // group_rows
    corpus = open_corpus([path])

    with pytest.raises(InputError, match=rf"c\.parquet: row group {bad_group} cannot be read: .*CRC"):
        list(corpus.chunks(ALL))
    rest = list(corpus.chunks(ALL, first_row=20))

    assert list(corpus.locate([17])) == [(str(path), {"row_group": bad_group})]
    assert [chunk.texts.to_pylist() for chunk in rest] == [words[20:]]


def test_a_bad_record_batch_of_an_arrow_file_is_named(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "c.arrow", texts(["a", "b", "c" * 100] * 3), group_rows=3)
    content = path.read_bytes()
    offsets = pa.array([0, 1, 2, 102], pa.int32()).buffers()[1].to_pybytes()
    second = content.index(offsets, content.index(offsets) + 1)
    path.write_bytes(content[:second] + b"\xff\xff\xff\x7f" + content[second + 4 :])

    with pytest.raises(InputError, match=r"c\.arrow: row group 1 cannot be read: .*[Oo]ffset"):
        read(path)


@pytest.mark.parametrize(
    "change", [lambda path: path.touch(), lambda path: path.unlink(), lambda path: flip(path, b"last")]
)
def test_a_file_that_changes_after_it_was_opened_is_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    first = write_parquet(tmp_path / "a.parquet", texts(["first"]))
    second = write_arrow(tmp_path / "b.arrow", texts(["last"]))
    corpus = open_corpus([first, second])
    change(second)

    with pytest.raises(InputError, match=r"b\.arrow: (changed while|cannot be read)"):
        list(corpus.chunks(ALL))


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
@pytest.mark.parametrize("end_row", [None, 350])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, write: Any, end_row: int | None) -> None:
    """The file is rewritten in place with the same size, also if `end_row` leaves its last rows unread."""
    path = write(tmp_path / "corpus", texts([f"old {i:03}" for i in range(400)]), group_rows=100)
    other = write(tmp_path / "other", texts([f"new {i:03}" for i in range(400)]), group_rows=100)
    chunks = open_corpus([path]).chunks(ChunkLimits(rows=50, bytes=MIB), end_row=end_row)
    next(chunks)
    path.write_bytes(other.read_bytes())

    with pytest.raises(InputError, match="changed while it was being read"):
        list(chunks)


def test_files_before_the_first_row_are_not_opened(tmp_path: Path) -> None:
    first = write_parquet(tmp_path / "a.parquet", texts(["a", "b"]))
    second = write_parquet(tmp_path / "b.parquet", texts(["c", "d"]))
    corpus = open_corpus([first, second])
    first.unlink()

    (chunk,) = corpus.chunks(ALL, first_row=2)

    assert (chunk.first_row, chunk.texts.to_pylist()) == (2, ["c", "d"])


class CountedMemory:
    """Counts the memory that Arrow allocates in the block; `peak` is its maximum in bytes."""

    def __enter__(self) -> Self:
        self._pool = pa.default_memory_pool()
        self._counted = pa.proxy_memory_pool(self._pool)
        pa.set_memory_pool(self._counted)
        return self

    def __exit__(self, *_: object) -> None:
        pa.set_memory_pool(self._pool)
        self.peak: int = self._counted.max_memory()


def dictionary_column(values: list[str], rows: list[int]) -> pa.Table:
    return pa.table({"text": pa.DictionaryArray.from_arrays(pa.array(rows, pa.int32()), values)})


def read_sizes(path: Path) -> list[int]:
    chunks = open_corpus([path]).chunks(ChunkLimits(rows=1000, bytes=4 * MIB))
    return [size for chunk in chunks for size in pc.binary_length(chunk.texts).to_pylist()]


@pytest.mark.parametrize("stored_as_dictionary", [True, False])
def test_a_small_file_of_huge_equal_texts_takes_little_memory(tmp_path: Path, stored_as_dictionary: bool) -> None:
    path = write_parquet(
        tmp_path / "bomb.parquet",
        dictionary_column(["x" * MIB], [0] * 300),
        compression="zstd",
        store_schema=stored_as_dictionary,  # without it, the column is read as plain strings
    )

    with CountedMemory() as memory:
        sizes = read_sizes(path)

    assert path.stat().st_size < 100_000
    assert sizes == [MIB] * 300
    assert memory.peak < 64 * MIB  # more than 300 MiB if a row group were read at once


def test_small_rows_first_do_not_raise_memory_for_huge_rows(tmp_path: Path) -> None:
    size = MIB // 4
    rows = [0] * 2000 + [1] * 1000
    path = write_parquet(tmp_path / "bomb.parquet", dictionary_column(["", "x" * size], rows), store_schema=False)

    with CountedMemory() as memory:
        sizes = read_sizes(path)

    assert sizes == [size * row for row in rows]
    assert memory.peak < 160 * MIB  # MAX_READ_ROWS huge rows, in a buffer that grows by doubling


def test_a_large_row_group_is_not_read_whole(tmp_path: Path) -> None:
    """64 MiB that snappy cannot compress, in one row group with pages of 1 MiB."""
    random = np.random.default_rng(0)
    rows: list[str | None] = [random.bytes(1 << 13).hex() for _ in range(4096)]
    path = write_parquet(tmp_path / "one.parquet", texts(rows), group_rows=len(rows), write_batch_size=64)

    before = pa.total_allocated_bytes()  # read-ahead buffers are not in the pool that CountedMemory sets
    held, found = [], 0
    for chunk in open_corpus([path]).chunks(ChunkLimits(rows=1000, bytes=4 * MIB)):
        held.append(pa.total_allocated_bytes() - before)
        found += len(chunk.texts)

    assert path.stat().st_size > 60 * MIB
    assert found == len(rows)
    assert max(held) < 32 * MIB


def test_huge_texts_in_an_arrow_dictionary_take_little_memory(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "bomb.arrow", dictionary_column(["x" * MIB], [0] * 300))

    with CountedMemory() as memory:
        sizes = read_sizes(path)

    assert sizes == [MIB] * 300
    assert memory.peak < 64 * MIB
