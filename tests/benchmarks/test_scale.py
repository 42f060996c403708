"""The arithmetic of `benchmarks.scale`, its encoder and its job of many shards; real timings are not checked."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import scale
from benchmarks.engines.models import MODEL_SHAPES
from benchmarks.scaling import bookkeeping
from benchmarks.scaling.cost import COPY, cost_of, layer_bytes, token_seconds
from benchmarks.scaling.processes import measured, texts_of_length, timing
from benchmarks.scaling.sleeping import DeviceLog
from fastvec.jobs.sharded import Schedule, in_this_process
from fastvec.jobs.worker import LoadEncoder
from fastvec.settings import resolve_settings
from fastvec.shards.folder import LocalFolder
from fastvec.shards.manifest import read_manifest
from fastvec.texts.load import load_tokenizer
from tests import ARTICLES

SHAPE = MODEL_SHAPES["0.6B"]
LOGS = [
    DeviceLog(loading=101, imports=0.5, begin=104, end=120, busy=12, tokens=600),
    DeviceLog(loading=103, imports=1.5, begin=108, end=118, busy=10, tokens=400),
]


def test_what_a_layer_moves_is_the_sum_in_the_documentation() -> None:
    assert layer_bytes(SHAPE) == 55_808


def test_the_seconds_of_a_token() -> None:
    products, attention = 2 * SHAPE.parameters, 4 * 300 * 16 * 128 * 28
    expected = products / 620e12 + attention / 310e12 + 28 * 55_808 / COPY
    assert token_seconds(SHAPE, 300) == pytest.approx(expected)
    assert token_seconds(SHAPE, 600) > token_seconds(SHAPE, 300)


def test_the_time_of_all_workers_is_divided() -> None:
    found = timing(LOGS, 100, 125, cpu=12)
    assert (found.workers, found.seconds, found.tokens, found.imported) == (2, 25, 1000, 2)
    assert (found.start, found.busy, found.between, found.end) == (6, 11, 2, 6)
    assert found.start + found.busy + found.between + found.end == found.seconds
    assert found.cpu == 10  # without the imports
    assert found.rate == 40
    assert found.steady_rate == pytest.approx(1000 / 13)


def test_a_longer_job_has_more_work_and_the_same_start_and_end() -> None:
    found = timing(LOGS, 100, 125, cpu=12)
    assert found.rate_of_job(11) == pytest.approx(found.rate)
    assert found.rate_of_job(1100) == pytest.approx(100_000 / (1100 + 14))


def test_the_cost_of_a_billion_texts() -> None:
    cpu = replace(timing(LOGS, 100, 125, cpu=12), tokens=10_000_000)  # 1 µs a token
    cost = cost_of("0.6B", cpu, text_bytes=1000)
    seconds = token_seconds(SHAPE, 300)
    assert cost.gpu_hours == pytest.approx(3e11 * seconds / 3600)
    assert cost.days[8] == pytest.approx(cost.gpu_hours / 24 / 8)
    assert cost.cores == pytest.approx(1e-6 / seconds)
    assert cost.text_rate == pytest.approx(1000 / (300 * seconds))
    assert cost.vector_bytes == {
        "float32": 4104e9,
        "float16": 2056e9,
        "int8": 1032e9,
        "binary": 136e9,
    }


def here(dims: int) -> Callable[[LoadEncoder], Schedule]:
    """Run the job of a benchmark in this process."""
    settings = replace(resolve_settings(None, device="cpu"), dims=dims)
    return lambda load: in_this_process(load(settings))


def test_a_job_with_an_encoder_that_sleeps_is_a_whole_job() -> None:
    texts = texts_of_length(ARTICLES, "text", tokens=20)
    found = measured(texts, here(1024), rows=40, workers=1, shape=SHAPE, rate=20_000)
    assert found.workers == 1
    assert 40 * 10 < found.tokens < 40 * 40
    assert found.busy == pytest.approx(found.tokens / 20_000)
    assert found.start + found.busy + found.between + found.end == pytest.approx(found.seconds)
    assert found.seconds > found.busy


def test_texts_have_about_the_length_that_was_asked_for() -> None:
    tokenizer = load_tokenizer(resolve_settings(None, device="cpu").checkpoint).backend_tokenizer
    texts = list(islice(texts_of_length(ARTICLES, "text", tokens=20), 2000))  # the corpus more than once
    lengths = [len(tokenizer.encode(text).ids) for text in texts]
    assert 15 < sum(lengths) / len(lengths) < 25


def test_the_stages_of_a_job_of_many_shards(tmp_path: Path) -> None:
    shards = 2000  # of one row each, in two row groups
    bookkeeping.prepare(tmp_path, shards)
    for stage in bookkeeping.STAGES.values():
        stage(tmp_path)
        manifest = read_manifest(LocalFolder(tmp_path / "vecs"))
        assert manifest is not None
        assert (len(manifest.shards), manifest.rows, manifest.counts["tokens"]) == (shards, shards, 300 * shards)


@pytest.mark.slow
def test_the_command_prints_and_writes_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "COST_ROWS", 50)
    arguments = [str(ARTICLES), "--workers", "1", "--workers", "2", "--seconds", "0.1", "--shards", "50"]
    done = CliRunner().invoke(scale.main, [*arguments, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    rows = {part: json.loads((tmp_path / "out" / f"scale-{part}.json").read_text())["rows"] for part in scale.PARTS}
    assert [row["workers"] for row in rows["processes"]] == [1, 2]
    assert set(rows["processes"][0]["ratios"].values()) == {1}
    assert [row["name"] for row in rows["receipts"]] == list(bookkeeping.STAGES)
    assert all(row["memory"] > 10**7 for row in rows["receipts"])
    assert [row["model"] for row in rows["cost"]] == ["0.6B", "8B"]
    assert all(row["cpu_seconds"] > 0 for row in rows["cost"])
    assert "1.00x" in done.output
