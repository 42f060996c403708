"""The recipes of docs/reading.md, run as they are on a file that the writer wrote."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from fastvec import Encoder, convert, embed
from fastvec.output.vector_column import VectorDtype, column_type, ranges_of, ranges_to_json, to_column
from fastvec.output.writer import Job, Writer
from tests import ROOT
from tests.helpers.outputs import make_schema

RECIPES = (ROOT / "docs/reading.md").read_text()
ROWS, DIMS = 10, 16
VALID = np.array([row not in (2, 6) for row in range(ROWS)])
BATCHES = [(0, 4), (4, 8), (8, 10)]


def unit_vectors() -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIMS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


VECTORS = unit_vectors()
QUERY = VECTORS[3]
SCORES = np.where(VALID, VECTORS @ QUERY, -np.inf)
NEAREST = np.argsort(-SCORES)[:3].tolist()


def write_output(path: Path, dtype: VectorDtype = "float32") -> None:
    ranges = ranges_of(VECTORS[VALID])
    schema = pa.schema(
        [
            pa.field("id", pa.string()),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("embedding", column_type(DIMS, dtype)),
        ],
        metadata={
            **make_schema(dtype=dtype, dims=DIMS).metadata,
            b"fastvec.model": b"tiny",
            b"fastvec.ranges": ranges_to_json(ranges).encode(),
        },
    )
    writer = Writer.open(path, Job(fingerprint={}, environment={}, limits={}))
    writer.begin(schema)
    for begin, end in BATCHES:
        ids = pa.array([f"text {row}" for row in range(begin, end)])
        vectors = to_column(VECTORS[begin:end], VALID[begin:end], dtype, ranges)
        batch = pa.record_batch([ids, pa.array(range(begin, end)), vectors], schema=schema)
        batch = batch.cast(writer.schema)
        nulls = end - begin - int(VALID[begin:end].sum())
        writer.write(batch, counts={"nulls": nulls}, errors=(), batch_tokens=1)
    writer.finish(())


def run(*headings: str) -> dict[str, Any]:
    """The variables after the recipes under these headings, run one after the other."""
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", RECIPES, flags=re.MULTILINE | re.DOTALL))
    variables: dict[str, Any] = {"query": QUERY}
    for heading in headings:
        for code in re.findall(r"^```python\n(.*?)^```", sections[heading], flags=re.MULTILINE | re.DOTALL):
            exec(compile(code, heading, "exec"), variables)
    return variables


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_output(tmp_path / "vecs.arrow")
    return tmp_path / "vecs.arrow"


def test_numpy_reads_the_mapped_file_itself() -> None:
    result = run("Open", "NumPy")
    mapped, matrices = result["mapped"], result["matrices"]

    assert result["model"] == "tiny"
    assert [len(matrix) for matrix in matrices] == [end - begin for begin, end in BATCHES]
    for matrix in matrices:
        assert mapped.address <= matrix.ctypes.data < mapped.address + mapped.size
    assert np.array_equal(np.concatenate(matrices)[VALID], VECTORS[VALID])
    assert np.array_equal(result["valid"], VALID)
    assert result["nearest"].tolist() == NEAREST


def test_a_slice_of_a_column_keeps_its_rows() -> None:
    result = run("Open")
    column = result["vecs"]["embedding"].chunk(1)  # rows 4 to 7, of which 6 is null

    assert np.array_equal(result["matrix"](column.slice(3)), VECTORS[7:8])
    assert len(column.flatten()) == 3 * DIMS  # why the recipe does not use it


def test_polars_reads_the_vectors_and_their_rows() -> None:
    result = run("Polars")

    assert result["rows"].tolist() == np.flatnonzero(VALID).tolist()
    assert np.array_equal(result["vectors"], VECTORS[VALID])
    assert result["frame"]["id"].to_list() == [f"text {row}" for row in np.flatnonzero(VALID)]


def test_duckdb_finds_the_nearest() -> None:
    nearest = run("Open", "DuckDB")["nearest"]

    assert [(row, id) for row, id, _ in nearest] == [(row, f"text {row}") for row in NEAREST]
    assert [score for _, _, score in nearest] == pytest.approx(SCORES[NEAREST], abs=1e-6)


def test_faiss_finds_the_nearest_by_their_row_numbers() -> None:
    result = run("Open", "FAISS")

    assert result["index"].ntotal == VALID.sum()
    assert result["rows"][0].tolist() == NEAREST
    assert result["scores"][0] == pytest.approx(SCORES[NEAREST], abs=1e-6)


def test_lancedb_finds_the_nearest() -> None:
    result = run("Open", "LanceDB")

    assert result["texts"].count_rows() == VALID.sum()
    assert [(found["row"], found["id"]) for found in result["nearest"]] == [(row, f"text {row}") for row in NEAREST]
    assert result["nearest"][0]["embedding"] == pytest.approx(VECTORS[3])


def test_parquet_is_read_like_the_arrow_file(output: Path) -> None:
    convert(output, output.with_suffix(".parquet"))

    result = run("Open", "Polars", "DuckDB", "Parquet")

    assert np.array_equal(result["vectors"], VECTORS[VALID])
    assert [(row, id) for row, id, _ in result["nearest"]] == [(row, f"text {row}") for row in NEAREST]


def test_faiss_takes_the_npy_as_it_is(output: Path) -> None:
    convert(output, output.with_suffix(".npy"))

    assert run("Open", "FAISS", "npy")["nearest"].tolist() == NEAREST


def test_float16_is_widened_for_duckdb(output: Path) -> None:
    output.unlink()
    write_output(output, "float16")

    result = run("Open", "float16", "DuckDB")

    assert [row for row, *_ in result["nearest"]] == NEAREST
    assert result["vecs"].schema.metadata[b"fastvec.model"] == b"tiny"


def test_int8_is_scaled_back(output: Path) -> None:
    output.unlink()
    write_output(output, "int8")

    vectors = run("Open", "int8")["vectors"]

    half_a_step = ranges_of(VECTORS[VALID]) / 127 / 2
    assert np.all(np.abs(vectors - VECTORS)[VALID] <= half_a_step * 1.001)


def test_binary_is_unpacked(output: Path) -> None:
    output.unlink()
    write_output(output, "binary")

    result = run("Open", "binary")

    assert np.array_equal(result["signs"][VALID], np.where(VECTORS[VALID] > 0, 1, -1))
    assert result["distances"][VALID].tolist() == ((VECTORS > 0) != (QUERY > 0)).sum(axis=1)[VALID].tolist()


@pytest.fixture
def shards(output: Path, tiny_llama: Path) -> None:
    """Ten texts in five shards, one of them null."""
    texts = pa.table({"text": ["a", "b", None, *"defghij"]})
    encoder = Encoder.from_pretrained(tiny_llama, device="cpu", dtype="float32")
    embed(texts, f"{output.parent}/shards/", encoder=encoder, keep=["text"], shard_rows=2)


@pytest.mark.usefixtures("shards")
def test_shards_are_read_as_one_table() -> None:
    result = run("Open", "Polars", "DuckDB", "LanceDB", "Shards")

    assert sorted(result["vecs"]["row"].to_pylist()) == list(range(ROWS))
    assert result["frame"]["row"].to_list() == [row for row in range(ROWS) if row != 2]
    assert (result["count"], result["last"]) == (ROWS - 1, ROWS - 1)
    assert result["texts"].count_rows() == ROWS - 1


@pytest.mark.usefixtures("shards")
def test_datasets_loads_shards() -> None:
    pytest.importorskip("datasets")
    assert run("Shards with Datasets")["dataset"]["row"][:] == list(range(ROWS))
