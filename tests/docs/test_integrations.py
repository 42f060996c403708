"""The recipes of docs/integrations.md, run as they are against the real libraries."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastvec import Encoder
from tests import ROOT

SECTIONS = dict(
    re.findall(
        r"^## (.+?)\n(.*?)(?=^## |\Z)",
        (ROOT / "docs/integrations.md").read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
)
TRAIN = "A locomotive pulls a train."


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANONYMIZED_TELEMETRY", "False")  # Chroma's, which 1.5 does not send any more


def run(heading: str, *, needs: str | None = None) -> dict[str, Any]:
    """The variables after the recipe under this heading, and those of the start; skip without the library it needs."""
    if needs is not None:
        pytest.importorskip(needs, reason=f"{needs} is not installed: it is in the extra integrations")
    # a module of its own name, because libraries look a class up by its module
    variables: dict[str, Any] = {"__name__": "recipe"}
    for name in ("Start", heading):
        for code in re.findall(r"^```python\n(.*?)^```", SECTIONS[name], flags=re.MULTILINE | re.DOTALL):
            exec(compile(code, name, "exec"), variables)
    return variables


def documents(result: dict[str, Any]) -> Any:
    return Encoder.from_pretrained().encode_document(result["texts"])


def test_every_recipe_has_a_test() -> None:
    source = Path(__file__).read_text()
    assert [name for name in SECTIONS if name != "Start" and f'run("{name}"' not in source] == []


def test_langchain_finds_the_nearest() -> None:
    result = run("LangChain", needs="langchain_core")
    embeddings = result["FastvecEmbeddings"](result["encoder"])

    assert result["found"] == TRAIN
    assert np.array_equal(np.array(embeddings.embed_documents(result["texts"]), np.float32), documents(result))


def test_llamaindex_finds_the_nearest() -> None:
    result = run("LlamaIndex", needs="llama_index.core")
    embedding = result["FastvecEmbedding"](result["encoder"])

    assert result["found"] == TRAIN
    assert np.array_equal(np.array(embedding.get_text_embedding_batch(result["texts"]), np.float32), documents(result))


def test_chroma_finds_the_nearest_and_opens_the_collection_again() -> None:
    result = run("Chroma", needs="chromadb")

    assert result["found"] == TRAIN
    stored = result["collection"].get(include=["embeddings"])["embeddings"]
    assert np.array_equal(np.array(stored, np.float32), documents(result))
    again = result["client"].get_collection("texts")  # the function comes from the collection's configuration
    assert again.query(query_texts=["railway"], n_results=1)["documents"] == [[TRAIN]]


def test_lancedb_finds_the_nearest_and_opens_the_table_again() -> None:
    result = run("LanceDB")

    assert result["found"] == TRAIN
    again = result["lancedb"].connect("lancedb").open_table("texts")
    assert again.search("bakery").limit(1).to_list()[0]["text"] == result["texts"][2]
    assert np.array_equal(np.stack(again.to_arrow()["embedding"].to_numpy()), documents(result))


def test_datasets_maps_to_vectors_of_a_fixed_size() -> None:
    result = run("Datasets", needs="datasets")

    assert result["dataset"].features["embedding"].length == result["encoder"].dims
    assert np.array_equal(result["vectors"], documents(result))


def test_pandas_has_a_column_of_vectors() -> None:
    result = run("pandas", needs="pandas")

    assert np.array_equal(np.stack(result["frame"]["embedding"]), documents(result))


def test_polars_has_a_column_of_vectors() -> None:
    result = run("polars")
    column = result["frame"]["embedding"]

    assert column.dtype == result["pl"].Array(result["pl"].Float32, result["encoder"].dims)
    assert np.array_equal(column.to_numpy(), documents(result))


def test_a_parquet_file_is_streamed_into_another() -> None:
    result = run("Arrow")
    vectors = pq.read_table("vectors.parquet")

    assert vectors.column_names == ["id", "text", "embedding"]
    assert np.array_equal(np.stack(vectors["embedding"].to_numpy()), documents(result))


def test_duckdb_embeds_the_result_of_a_query() -> None:
    result = run("DuckDB")

    assert result["found"] == TRAIN
    rows = result["database"].execute("SELECT text, embedding FROM vectors").fetchall()
    assert [text for text, _ in rows] == result["texts"]
    assert np.array_equal(np.array([vector for _, vector in rows], np.float32), documents(result))


@pytest.fixture
def ray_of_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="ray is not installed: it is in the extra ray")
    monkeypatch.setenv("RAY_ADDRESS", "local")  # not a cluster that runs on this machine
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    yield
    ray.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.usefixtures("ray_of_the_test")
def test_ray_maps_a_dataset_in_an_actor() -> None:
    result = run("Ray Data")

    wanted = dict(zip(result["texts"], result["encoder"].encode(result["texts"]), strict=True))
    assert {row["text"] for row in result["rows"]} == wanted.keys()
    for row in result["rows"]:
        assert np.allclose(row["embedding"], wanted[row["text"]], rtol=0, atol=1e-6)
