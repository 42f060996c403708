"""The counts, random models, limits and reports of `benchmarks.embed`; real timings are not checked."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from benchmarks import embed
from benchmarks.embed import Workload, announcement, compare_vectors, ratio, rows_for, table
from benchmarks.engines import contestant, energy, engines, models, race
from benchmarks.engines.contestant import timed
from benchmarks.engines.engines import Missing
from benchmarks.engines.models import MIXES, ModelShape, read_mix, save_random_model
from benchmarks.engines.race import Measurement, Result, Runner, output_of, run_rounds
from fastvec.settings import resolve_settings
from tests.helpers.processes import process_exists

TINY = ModelShape(hidden=64, intermediate=96, layers=2, heads=4, kv_heads=2, head=16)
WORK = Workload(shape="25M", mix="wiki", rows=10, tokens=100, flops=1e12, padded=200)
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


def measured(whole: float = 4.0, steady: float = 2.0, memory: int = 2**30, joules: float | None = None) -> Measurement:
    return Measurement(whole=whole, steady=steady, share=0.5, memory=memory, device_memory=None, joules=joules)


def runner_in(folder: Path, limit: float = 60) -> Runner:
    return Runner(model=folder / "model", folder=folder, max_length=64, limit=limit)


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio([1.0, 2.0, 4.0], [3.0, 4.0, 20.0]) == "3.00× (2.00 to 5.00)"
    assert ratio([1.0, 2.0], [3.0]) == "3.00×"
    assert ratio([1.0], []) == ""


def test_the_table_has_the_ratios_of_both_times() -> None:
    own = Result(name="fastvec", dtype="float32", measurements=[measured(4, 2), measured(8, 2)], cosine=1.0)
    other = Result(name="other", dtype="float32", measurements=[measured(12, 3), measured(8, 5)], cosine=0.99996)
    head, ours, theirs = table(WORK, [own, other])
    columns = ("whole", "steady", "rows/s", "% of peak", "fastvec is, steady", "fastvec is, whole", "memory")
    assert [head.index(column) for column in columns] == sorted(head.index(column) for column in columns)
    assert ours.split() == ["fastvec,", "float32", "6.0", "s", "2.0", "s", "5", "50%", "1,024", "MiB", "1.0000"]
    assert "2.00× (1.50 to 2.50)  2.00× (1.00 to 3.00)" in theirs
    assert len({len(line.rstrip()) for line in (ours, theirs)}) == 1


def test_the_table_has_energy_if_a_driver_reports_it() -> None:
    joules = [measured(joules=30.0), measured(joules=50.0), measured(joules=40.0)]
    own = Result(name="fastvec", dtype="float32", measurements=joules, cosine=1.0)
    assert table(WORK, [own])[-1].split()[-2:] == ["40", "J"]


def test_the_table_says_why_a_contestant_has_no_figures() -> None:
    own = Result(name="fastvec", dtype="float32", measurements=[measured(), measured()], cosine=1.0)
    absent = Result(name="vapour", dtype="float32", missing="No module named 'vapour'")
    slow = Result(name="slow", dtype="float32", measurements=[measured()], cosine=1.0, missing="stopped after 3 s")
    lines = table(WORK, [own, absent, slow])
    assert lines[2].split(maxsplit=2)[2] == "No module named 'vapour'"
    assert "2.0 s" in lines[3]
    assert lines[3].endswith("not in round 2: stopped after 3 s")


def test_the_announcement_has_a_lower_bound_of_the_time() -> None:
    results = [Result(name=name, dtype="float32") for name in ("fastvec", "other")]
    work, dtype, total = announcement(WORK, results, {"float32": 1e11}, rounds=2, limit=300)
    assert "padding in row order would be 50%" in work
    assert "float32: encoding takes at least 10.0 s at the measured 0.10 TFLOP/s; contestants: fastvec; other" in dtype
    assert "2 rounds, at least 60 s" in total  # fastvec twice
    assert "after 300 s" in total


def test_the_default_rows_take_the_same_time_at_any_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "DEVICE", "cpu")
    assert rows_for(WORK, {"float32": 1e14}) == 100 * embed.SECONDS["cpu"] / 2 * WORK.rows
    assert rows_for(WORK, {"float32": 1e14, "bfloat16": 3e14}) == 150 * embed.SECONDS["cpu"] / 2 * WORK.rows
    assert rows_for(WORK, {"float32": 1.0}) == 128  # four batches


def test_vectors_are_compared_row_by_row(tmp_path: Path) -> None:
    first, other = (Result(name=name, dtype="float32", measurements=[measured()]) for name in ("fastvec", "other"))
    runner = runner_in(tmp_path)
    np.save(runner.vectors("fastvec", "float32"), np.eye(3, dtype=np.float32))
    np.save(runner.vectors("other", "float32"), np.eye(4, 3, dtype=np.float32)[[0, 1, 3]])
    compare_vectors([first, other], runner)
    assert (first.cosine, other.cosine) == (1.0, 0.0)


def test_the_warm_up_is_a_part_of_the_rows_and_is_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "counters", dict)
    calls: list[int] = []

    def encode(count: int) -> str:
        calls.append(count)
        return f"{count} rows"

    result, found = timed(encode, 200)
    assert (result, calls) == ("200 rows", [20, 200])
    assert set(found) == {"warm_up", "steady", "joules"}
    timed(encode, 200, at_least=100)
    timed(encode, 3)
    assert calls[2:] == [100, 200, 1, 3]


def test_a_few_rows_are_too_few_for_a_quantized_contestant(corpus: Path, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(corpus).slice(0, 99), tmp_path / "rows.parquet")
    with pytest.raises(Missing, match="needs 100 rows"):
        contestant.run("fastvec, int8", "model", tmp_path / "rows.parquet", tmp_path / "v.npy", "float32", 64, "whole")


def test_sentence_transformers_fills_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []

    class Encoder:
        device = SimpleNamespace(type="cuda")

        def __init__(self, model: str, model_kwargs: dict[str, object]) -> None:
            calls.append(model_kwargs)

        def encode(self, texts: list[str], **options: object) -> list[str]:
            calls.append(options)
            return texts

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Encoder))
    engines.ENGINES["sentence-transformers"]("model", "bfloat16", 512)(["a text"])
    assert calls[0] == {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
    assert calls[1]["batch_size"] == 256


@pytest.mark.slow
def test_a_process_and_its_children_are_killed_at_the_limit(tmp_path: Path) -> None:
    child = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    script = (
        f"import os, subprocess, sys; os.chdir({str(tmp_path)!r}); subprocess.run([sys.executable, '-c', {child!r}])"
    )
    begun = time.monotonic()
    with pytest.raises(Missing, match=r"^stopped after 10 s$"):
        output_of([sys.executable, "-c", script], limit=10)
    assert time.monotonic() - begun < 30
    number = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 10  # a killed process takes a moment to disappear
    while process_exists(number) and time.monotonic() < until:
        time.sleep(0.01)
    assert not process_exists(number)


def test_the_last_line_of_a_failed_process_is_its_reason() -> None:
    with pytest.raises(Missing, match=r"^failed: RuntimeError: no memory$"):
        output_of([sys.executable, "-c", "raise RuntimeError('no memory')"], limit=60)


# Stands in for `benchmarks.engines.contestant`: one engine sleeps, one is not installed, the others save a vector.
FAKE = """
import json, sys, time
import numpy as np
name, _, _, vectors, _, _, mode = sys.argv[1:]
if name == "transformers":
    time.sleep(60)
if name == "vLLM":
    print(json.dumps({"missing": "No module named 'vllm'"}))
    sys.exit()
np.save(vectors, np.eye(2, dtype=np.float32))
found = {"memory": 2**20, "device_memory": None}
if mode == "steady":
    found |= {"warm_up": 0.0, "steady": 0.5, "joules": None}
print("a line of a library")
print(json.dumps(found))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that runs the command with fake contestants, and returns the lines that it prints."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(race, "CONTESTANT", (sys.executable, str(tmp_path / "fake.py")))
    monkeypatch.setattr(race, "matrix_rate", lambda dtype: 1e12)
    monkeypatch.setitem(models.MODEL_SHAPES, "25M", TINY)

    def run(*arguments: str) -> list[str]:
        done = CliRunner().invoke(embed.main, ["--mix", "wiki", "--rows", "40", "--dtype", "float32", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout.splitlines()

    return run


@pytest.mark.slow
def test_a_contestant_that_is_too_slow_is_stopped_and_left_out(
    fake: Callable[..., list[str]], corpus: Path, tmp_path: Path
) -> None:
    names = [word for name in ("fastvec", "transformers", "vLLM", "llama.cpp") for word in ("--only", name)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"benchmark": "another"}\n')
    lines = fake(str(corpus), "--rounds", "2", "--limit", "10", "--append", str(rows), *names)
    assert "round 1: transformers, float32: stopped after 10 s" in lines
    assert [line.split(",")[0] for line in lines if line.startswith("round 2: ")] == [
        "round 2: fastvec",
        "round 2: llama.cpp",
    ]
    assert [line.split("  ")[-1] for line in lines if line.startswith(("transformers", "vLLM"))] == [
        "stopped after 10 s",
        "No module named 'vllm'",
    ]
    appended = [json.loads(line) for line in rows.read_text().splitlines()][1:]
    assert [(row["name"], row["round"]) for row in appended] == [
        *((name, 1) for name in ("fastvec", "transformers", "vLLM", "llama.cpp")),
        *((name, 2) for name in ("fastvec", "llama.cpp")),
    ]
    assert list(appended[0]) == [
        *("benchmark", "shape", "mix", "rows", "tokens", "name", "dtype", "round", "whole", "steady", "share"),
        *("memory", "device_memory", "joules", "missing"),
    ]
    assert appended[0].keys() == appended[1].keys()
    assert (appended[0]["benchmark"], appended[0]["rows"], appended[0]["steady"]) == ("embed", 40, 0.5)
    assert (appended[1]["steady"], appended[1]["missing"]) == (None, "stopped after 10 s")


def test_no_contestant_starts_when_the_time_is_over(fake: Callable[..., list[str]], corpus: Path) -> None:
    lines = fake(str(corpus), "--seconds", "0", "--only", "fastvec", "--only", "llama.cpp", "--rounds", "2")
    assert [line for line in lines if line.startswith("round 1: ")] == [
        f"round 1: {name}, float32: not run: the time of --seconds was over" for name in ("fastvec", "llama.cpp")
    ]
    assert not any(line.startswith("round 2: ") for line in lines)


def test_a_measurement_is_printed_before_the_next_contestant_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "matrix_rate", lambda dtype: 1e12)
    done: list[str] = []

    def measure(self: Runner, name: str, dtype: str, fewest_seconds: float) -> Measurement:
        done.append(f"{name} ran")
        return measured()

    monkeypatch.setattr(Runner, "measure", measure)
    results = [Result(name=name, dtype="float32") for name in ("fastvec", "other")]
    for number, result, _ in run_rounds(runner_in(tmp_path), results, 1e12, rounds=2):
        done.append(f"{result.name} printed in round {number}")
    assert done == [
        f"{name} {event}"
        for number in (1, 2)
        for name in ("fastvec", "other")
        for event in ("ran", f"printed in round {number}")
    ]


@pytest.mark.slow
def test_all_contestants_make_the_same_vectors(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODEL_SHAPES, "25M", TINY)
    monkeypatch.setattr(race, "matrix_rate", lambda dtype: 1e12)
    arguments = [str(corpus), "--mix", "wiki", "--rows", "40", "--dtype", "float32", "-o", str(tmp_path / "out")]
    made = ("fastvec", "sentence-transformers", "transformers", "llama.cpp", "llama.cpp, Q8_0")
    for name in (*made, "sentence-transformers, FlashAttention-2"):
        arguments += ["--only", name]
    done = CliRunner().invoke(embed.main, arguments)
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out" / "embed-25M-wiki.json").read_text())
    results = {result["name"]: result for result in document["results"]}
    absent = results["sentence-transformers, FlashAttention-2"]
    assert bool(absent["missing"]) != bool(absent["measurements"])
    for name in made:
        (one,) = results[name]["measurements"]
        assert one["whole"] > one["steady"] > 0
        assert results[name]["cosine"] > (0.999 if name == "llama.cpp, Q8_0" else 0.9999)
    assert results["llama.cpp, Q8_0"]["cosine"] < 0.99999
    assert (tmp_path / "out" / "embed-25M-wiki.png").stat().st_size > 0
