"""Tests of `fastvec.ray`: the batches that it takes, and the class in Ray's own actors, if Ray is installed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastvec import Encoder
from fastvec.errors import UsageError
from fastvec.ray import Embedder
from tests import ROOT

TEXTS = ["The great tit is a small bird.", None, "Bread is baked from flour.", ""]
TABLE = pa.table({"id": [0, 1, 2, 3], "text": TEXTS})
NUMPY = {"id": np.arange(4), "text": np.array(TEXTS, dtype=object), "image": np.zeros((4, 2, 2), np.uint8)}


def expected(model: Path, dtype: str = "auto", **options: Any) -> list[list[float] | None]:
    """What the encoder itself returns for the texts, and null for null."""
    vectors = iter(
        Encoder.from_pretrained(model, dtype=dtype).encode([t for t in TEXTS if t is not None], **options).tolist()
    )
    return [None if text is None else next(vectors) for text in TEXTS]


def test_a_table_has_the_column_appended(tiny_llama: Path) -> None:
    result = Embedder(str(tiny_llama))(TABLE)

    assert result.schema.names == ["id", "text", "embedding"]
    assert result.schema.field("embedding").type == pa.list_(pa.float32(), 64)
    assert result["embedding"].to_pylist() == expected(tiny_llama)
    assert result.select(["id", "text"]).equals(TABLE)


def test_numpy_arrays_keep_what_they_are(tiny_llama: Path) -> None:
    result = Embedder(str(tiny_llama), vector_column="vec")(NUMPY)

    assert list(result) == ["id", "text", "image", "vec"]
    assert all(result[name] is values for name, values in NUMPY.items())
    assert result["vec"].to_pylist() == expected(tiny_llama)


@pytest.mark.parametrize("texts", [[], [None, None]])
def test_a_batch_may_have_no_text(tiny_llama: Path, texts: list[None]) -> None:
    embed = Embedder(str(tiny_llama))
    for batch in (pa.table({"text": pa.array(texts, pa.string())}), {"text": np.array(texts, dtype=object)}):
        column = embed(batch)["embedding"]

        assert (column.type, column.to_pylist()) == (pa.list_(pa.float32(), 64), texts)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_frame_keeps_its_index(tiny_llama: Path, missing: Any) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: it is in the extra ray")
    texts = pandas.Series([missing if t is None else t for t in TEXTS], dtype=object, index=[5, 6, 7, 8])
    result = Embedder(str(tiny_llama))(pandas.DataFrame({"text": texts}))

    assert list(result.index) == [5, 6, 7, 8]
    assert pa.array(result["embedding"]).to_pylist() == expected(tiny_llama)


def test_options_are_those_of_the_encoder(tiny_llama: Path) -> None:
    table = pa.table({"doc": [{"body": text} for text in TEXTS]})
    result = Embedder(str(tiny_llama), column="doc.body", instruction="Find: ", normalize=False)(table)

    encoder = Encoder.from_pretrained(tiny_llama, normalize=False)
    vectors = encoder.encode([text for text in TEXTS if text is not None], instruction="Find: ")
    assert [vector for vector in result["embedding"].to_pylist() if vector is not None] == vectors.tolist()


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"column": "body"}, TABLE, "the batch has no column 'body', only id, text: set column"),
        ({"column": "id"}, NUMPY, "expected strings, got Arrow values of type int64: give the column with the texts"),
        ({"column": "image"}, NUMPY, "column 'image' has values that are not strings: give the column with the texts"),
        ({"vector_column": "id"}, TABLE, "the batch has a column 'id' already: choose another vector_column"),
    ],
)
def test_a_batch_without_texts_is_refused(tiny_llama: Path, options: dict[str, str], batch: Any, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        Embedder(str(tiny_llama), **options)(batch)
    assert str(refused.value).endswith(message)


def test_options_are_checked_when_an_actor_starts(tiny_llama: Path) -> None:
    with pytest.raises(UsageError, match="query"):
        Embedder(str(tiny_llama), prompt_name="query")


def test_ray_is_not_imported() -> None:
    script = "import sys, fastvec.ray; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine, with two CPUs, silent."""
    data = pytest.importorskip("ray.data", reason="ray is not installed: it is in the extra ray")
    ray = sys.modules["ray"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        data.DataContext.get_current().enable_progress_bars = False
        yield ray
        ray.shutdown()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("batch_format", ["numpy", "pandas", "pyarrow"])
def test_a_dataset_is_mapped_in_actors(ray: Any, tiny_llama: Path, batch_format: str) -> None:
    dataset = ray.data.from_arrow([TABLE.slice(0, 2), TABLE.slice(2)]).map_batches(
        Embedder,
        # the actor measures in its own process which dtype is the faster one
        fn_constructor_kwargs={"model": str(tiny_llama), "dtype": "float32"},
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
        batch_format=batch_format,
        batch_size=None,
    )
    rows = pa.concat_tables(dataset.iter_batches(batch_size=None, batch_format="pyarrow")).sort_by("id")

    assert rows.schema.field("embedding").type.list_size == 64
    vectors, wanted = rows["embedding"].to_pylist(), expected(tiny_llama, dtype="float32")
    assert [vector is None for vector in vectors] == [vector is None for vector in wanted]
    assert np.allclose([v for v in vectors if v], [v for v in wanted if v], rtol=0, atol=1e-6)
