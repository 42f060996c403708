"""The counts, random models and reports of `benchmarks.embed`; real timings are not checked."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from benchmarks import embed
from benchmarks.embed import Result, Workload, compare_vectors, ratio, table, vectors_of
from benchmarks.engines import models
from benchmarks.engines.models import MIXES, ModelShape, read_mix, save_random_model
from fastvec.settings import resolve_settings

TINY = ModelShape(hidden=64, intermediate=96, layers=2, heads=4, kv_heads=2, head=16)
ROW = "The whale dives deep into the sea. " * 3 + "It comes back after an hour or two. " * 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("models") / "tiny", TINY, max_length=64)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": [f"{number} {ROW}" for number in range(400)]}), path)
    return path


def test_its_parameters_are_those_that_multiply(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    assert TINY.parameters == sum(t.numel() for name, t in tensors.items() if t.ndim == 2 and "embed" not in name)


def test_its_work_is_linear_in_tokens_and_quadratic_in_lengths() -> None:
    assert TINY.flops([10, 10]) - TINY.flops([20]) == 4 * (2 * 10**2 - 20**2) * 4 * 16 * 2
    assert TINY.flops([20]) == 2 * TINY.parameters * 20 + 4 * 20**2 * 4 * 16 * 2


def test_a_random_model_is_run_as_all_contestants_run_it(model: Path) -> None:
    settings = resolve_settings(model)
    assert (settings.bidirectional, settings.pooling, settings.normalize) == (True, "mean", True)
    assert settings.max_length == 64
    assert settings.dims == 64


def test_mixes_repeat_and_differ(corpus: Path) -> None:
    mixes = {mix: read_mix(corpus, "text", mix, 200) for mix in MIXES}
    assert mixes == {mix: read_mix(corpus, "text", mix, 200) for mix in MIXES}
    assert max(map(len, mixes["short"])) <= 200
    assert mixes["wiki"] == pq.read_table(corpus)["text"].to_pylist()[:200]
    lengths = sorted(map(len, mixes["long-tail"]))
    assert sum(lengths[-20:]) > sum(lengths[:-20])
    with pytest.raises(ValueError, match=r"has 400 texts of the mix wiki, 401 are needed"):
        read_mix(corpus, "text", "wiki", 401)


def test_a_ratio_is_taken_round_by_round() -> None:
    own, other = Result(name="fastvec", dtype="float32"), Result(name="other", dtype="float32")
    own.seconds, other.seconds = [1.0, 2.0, 4.0], [3.0, 4.0, 20.0]
    assert ratio(own, other) == "3.00× (2.00 to 5.00)"


def test_the_table_says_why_a_contestant_has_no_figures() -> None:
    own = Result(name="fastvec", dtype="float32", seconds=[2.0], shares=[0.5], memory=2**30, cosine=1.0)
    absent = Result(name="vapour", dtype="float32", missing="No module named 'vapour'")
    work = Workload(shape="25M", mix="wiki", rows=10, tokens=100, flops=1e12, padded=200)
    head, _, ours, theirs = table(work, [own, absent])
    assert "padding in row order would be 50%" in head
    assert ours.split() == ["fastvec,", "float32", "5", "50", "50%", "1,024", "MiB", "1.0000"]
    own.joules = [30.0, 50.0, 40.0]
    assert table(work, [own])[-1].split()[-2:] == ["40", "J"]
    assert theirs.split(maxsplit=2)[2] == "No module named 'vapour'"


def test_vectors_are_compared_row_by_row(tmp_path: Path) -> None:
    first, other = (Result(name=name, dtype="float32", seconds=[1.0]) for name in ("fastvec", "other"))
    np.save(vectors_of(first, tmp_path), np.eye(3, dtype=np.float32))
    np.save(vectors_of(other, tmp_path), np.eye(4, 3, dtype=np.float32)[[0, 1, 3]])
    compare_vectors([first, other], tmp_path)
    assert (first.cosine, other.cosine) == (1.0, 0.0)


@pytest.mark.slow
def test_all_contestants_make_the_same_vectors(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODEL_SHAPES, "25M", TINY)
    monkeypatch.setattr(embed, "matrix_rate", lambda dtype: 1e12)
    arguments = [str(corpus), "--rows", "40", "--rounds", "1", "--dtype", "float32", "-o", str(tmp_path / "out")]
    made = ("fastvec", "sentence-transformers", "transformers", "llama.cpp", "llama.cpp, Q8_0")
    for name in (*made, "sentence-transformers, FlashAttention-2"):
        arguments += ["--only", name]
    done = CliRunner().invoke(embed.main, arguments)
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out" / "embed-25M-wiki.json").read_text())
    results = {result["name"]: result for result in document["results"]}
    absent = results["sentence-transformers, FlashAttention-2"]
    assert bool(absent["missing"]) != bool(absent["seconds"])
    for name in made[:-1]:
        assert results[name]["cosine"] > 0.9999
        assert results[name]["seconds"]
    assert 0.999 < results["llama.cpp, Q8_0"]["cosine"] < 0.99999
    assert (tmp_path / "out" / "embed-25M-wiki.png").stat().st_size > 0
