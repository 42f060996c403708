"""Vectors by position, over files and shards, in blocks that cut record batches."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec import convert
from fastvec.errors import OutputError, UsageError
from fastvec.output.vector_column import VectorDtype
from fastvec.settings import EncoderSettings
from fastvec.vectors.stored import Vectors, open_vectors
from fastvec.vectors.unified import unified
from tests.helpers.outputs import run_job
from tests.helpers.vectors import random_vectors, write_vectors

DTYPES: list[VectorDtype] = ["float32", "float16", "int8", "binary"]


def whole(vectors: Vectors, rows: int, **bounds: int) -> np.ndarray:
    """All vectors, read in blocks, after a check that the blocks follow each other."""
    blocks = list(vectors.blocks(rows, **bounds))
    begins = [bounds.get("begin", 0)]
    for block in blocks:
        assert block.begin == begins[-1]
        assert 0 < len(block) <= rows
        begins.append(block.begin + len(block))
    assert begins[-1] == bounds.get("end", vectors.rows)
    return np.concatenate([vectors.floats(block) for block in blocks])


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_are_all_rows_of_all_files_in_order(
    tmp_path: Path, dtype: VectorDtype, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastvec.output.parquet_file._MOST_ROWS_AT_ONCE", 13)  # pieces of a row group
    stored = []
    for number, rows in enumerate((70, 0, 33)):
        path = tmp_path / f"{number}.arrow"
        stored.append(write_vectors(path, random_vectors(rows, seed=number), missing=(1,) if rows else (), dtype=dtype))
        if suffix == ".parquet":
            convert(path, path.with_suffix(suffix))
    expected = np.concatenate(stored)
    expected[[1, 71]] = 0
    with open_vectors([tmp_path / f"{number}{suffix}" for number in range(3)]) as vectors:
        assert (vectors.rows, vectors.dims, vectors.dtype) == (103, 16, dtype)
        for rows in (1, 7, 1000):
            np.testing.assert_array_equal(whole(vectors, rows), expected)
        np.testing.assert_array_equal(whole(vectors, 20, begin=31, end=90), expected[31:90])
        np.testing.assert_array_equal(whole(vectors, 20, begin=70, end=71), expected[70:71])


def test_vectors_of_an_arrow_file_are_mapped_and_not_copied(tmp_path: Path) -> None:
    write_vectors(tmp_path / "a.arrow", random_vectors(40))
    with open_vectors([tmp_path / "a.arrow"]) as vectors:
        for block in vectors.blocks(16):
            assert np.shares_memory(vectors.floats(block, unit=True), block.values)
            assert not block.values.flags.owndata


@pytest.mark.parametrize("dtype", DTYPES)
def test_unit_vectors_have_length_1_and_zero_stays_zero(tmp_path: Path, dtype: VectorDtype) -> None:
    given = random_vectors(40) * np.float32(3)
    if dtype != "binary":
        given[5] = 0
    write_vectors(tmp_path / "a.arrow", given, dtype=dtype, normalize=False, missing=(7,))
    with open_vectors([tmp_path / "a.arrow"]) as vectors:
        (block,) = list(vectors.blocks(40))[:1]
        lengths = np.linalg.norm(vectors.floats(block, unit=True).astype(np.float64), axis=1)
    none = {7, *({5} if dtype != "binary" else ())}
    assert set(np.flatnonzero(lengths == 0)) == none & set(range(len(lengths)))
    # D products and a square root, each rounded to float32
    np.testing.assert_allclose(lengths[lengths > 0], 1, atol=(given.shape[1] + 2) * 2**-24)


def test_rows_are_taken_in_the_order_asked_for(tmp_path: Path) -> None:
    for name, rows in {"a": 70, "b": 30}.items():
        write_vectors(tmp_path / f"{name}.arrow", random_vectors(rows), title=[f"{name}{i}" for i in range(rows)])
    with open_vectors([tmp_path / "a.arrow", tmp_path / "b.arrow"]) as vectors:
        positions = np.array([99, 0, 70, 69, 0, 33])
        table = vectors.take(positions, ["title", "row"])
        assert table["title"].to_pylist() == ["b29", "a0", "b0", "a69", "a0", "a33"]
        assert table["row"].to_pylist() == [29, 0, 0, 69, 0, 33]
        assert [Path(name).name for name in vectors.sources(positions[:3])] == ["b.arrow", "a.arrow", "b.arrow"]
        assert vectors.take(positions[:0], ["title"]).num_rows == 0
        assert (vectors.kept, vectors.has_several) == (("title",), True)


def test_only_columns_that_all_files_have_are_kept(tmp_path: Path) -> None:
    write_vectors(tmp_path / "a.arrow", random_vectors(3), title=["x"] * 3, year=[1] * 3)
    write_vectors(tmp_path / "b.arrow", random_vectors(3), year=[2] * 3)
    with open_vectors([tmp_path / "a.arrow", tmp_path / "b.arrow"]) as vectors:
        assert vectors.kept == ("year",)
        assert [batch.column(0).to_pylist() for _, batch in vectors.batches(["year"])] == [[1] * 3, [2] * 3]


def test_a_folder_of_shards_is_one_output(
    articles_in_shards: Path, settings: EncoderSettings, articles_in_one: Path
) -> None:
    with open_vectors([articles_in_shards]) as shards, open_vectors([articles_in_one]) as single:
        assert len(shards.parts) > 2
        assert not shards.has_several
        np.testing.assert_array_equal(whole(shards, 50), whole(single, 50))
        assert shards.take(np.arange(300), ["row"])["row"].to_pylist() == list(range(300))


def test_outputs_that_differ_in_what_a_vector_means_are_refused(tmp_path: Path) -> None:
    write_vectors(tmp_path / "a.arrow", random_vectors(3))
    write_vectors(tmp_path / "b.arrow", random_vectors(3), dtype="float16")
    with pytest.raises(OutputError, match=r"b\.arrow cannot be compared with .*vector_dtype was \"float32\", now"):
        open_vectors([tmp_path / "a.arrow", tmp_path / "b.arrow"]).__enter__()


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    run_job(tmp_path / "a.arrow")
    cases = {
        (): "no output was given",
        (tmp_path / "none.arrow",): "none.arrow cannot be read: No such file",
        (tmp_path / "a.arrow", tmp_path / "." / "a.arrow"): "given twice",
        (tmp_path,): "no shards|manifest",
    }
    for files, message in cases.items():
        with pytest.raises((UsageError, OutputError), match=message):
            open_vectors(files).__enter__()
    with pytest.raises(UsageError, match=r"no column of vectors named 'x': choose --vector-column embedding"):
        open_vectors([tmp_path / "a.arrow"], vector_column="x").__enter__()


def test_a_batch_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_vectors(path, random_vectors(64))
    with open_vectors([path]) as vectors:
        content = bytearray(path.read_bytes())
        begin = len(content) // 2
        content[begin - 2000 : begin + 2000] = b"\xff" * 4000
        path.write_bytes(content)
        with pytest.raises(OutputError, match=r"a\.arrow: batch \d cannot be read"):
            list(vectors.blocks(10))


def test_a_piece_of_a_row_group_has_some_mib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vectors(tmp_path / "a.arrow", random_vectors(100))
    convert(tmp_path / "a.arrow", tmp_path / "a.parquet")
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        row_bytes = file.metadata.row_group(0).total_byte_size / 100
    for least, bytes_, rows in ((1, 21.5 * row_bytes, 21), (50, 21.5 * row_bytes, 50), (1, 1 << 20, 100)):
        monkeypatch.setattr("fastvec.output.parquet_file._ROWS_AT_ONCE", least)
        monkeypatch.setattr("fastvec.output.parquet_file._BYTES_AT_ONCE", int(bytes_))
        with open_vectors([tmp_path / "a.parquet"]) as vectors:
            largest = max(batch.num_rows for _, batch in vectors.batches(["row"]))
        assert rows * 0.9 <= largest <= rows


LOSSLESS: list[tuple[pa.DataType, pa.DataType, pa.DataType | None]] = [
    (pa.int64(), pa.null(), pa.int64()),
    (pa.int8(), pa.int32(), pa.int32()),
    (pa.uint32(), pa.int64(), pa.int64()),
    (pa.uint64(), pa.int64(), None),
    (pa.int32(), pa.float64(), pa.float64()),
    (pa.int64(), pa.float64(), None),
    (pa.int32(), pa.float32(), pa.float64()),
    (pa.int16(), pa.float16(), pa.float32()),
    (pa.float32(), pa.float64(), pa.float64()),
    (pa.string(), pa.large_string(), pa.large_string()),
    (pa.string(), pa.int64(), None),
    (pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("ns")),
    (pa.list_(pa.int64()), pa.list_(pa.float64()), None),
    (pa.struct({"a": pa.int8()}), pa.struct({"a": pa.null()}), pa.struct({"a": pa.int8()})),
    (
        pa.struct({"a": pa.int8()}),
        pa.struct({"a": pa.int8(), "b": pa.bool_()}),
        pa.struct({"a": pa.int8(), "b": pa.bool_()}),
    ),
    (pa.struct({"a": pa.int64()}), pa.struct({"a": pa.float64()}), None),
]


@pytest.mark.parametrize(("one", "other", "both"), LOSSLESS)
def test_a_type_for_all_files_loses_no_value(one: pa.DataType, other: pa.DataType, both: pa.DataType | None) -> None:
    for own in ((one, other), (other, one)):
        found = unified([pa.field("a", type_) for type_ in own])
        assert (None if found is None else found.type) == both


def test_types_of_a_column_may_differ_between_files(tmp_path: Path) -> None:
    write_vectors(tmp_path / "a.arrow", random_vectors(3), year=[1] * 3)
    write_vectors(tmp_path / "b.arrow", random_vectors(3), year=pa.nulls(3).to_pylist())
    with open_vectors([tmp_path / "a.arrow", tmp_path / "b.arrow"]) as vectors:
        assert vectors.take(np.array([5, 0]), ["year"])["year"].to_pylist() == [None, 1]
