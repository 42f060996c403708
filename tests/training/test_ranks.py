"""Two processes over gloo, with copies of the model or with parts of it, match one process with twice the batch."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from fastvec import Encoder
from fastvec.training.metrics import read_metrics
from tests import ROOT
from tests.helpers.processes import environment
from tests.training.ranks import RUNS, train

ARTICLES = ROOT / "tests" / "data" / "articles.parquet"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
CASES = [(how, name) for how in ("copies", "split") for name in RUNS]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Articles with their first 80 characters, hard negatives that most rows lack, and a teacher's vectors."""
    table = pq.read_table(ARTICLES)
    starts = [text[:80] for text in table["text"].to_pylist()]
    other = [None if row % 3 else text for row, text in enumerate(starts[::-1])]
    vectors = pa.array(np.random.default_rng(0).standard_normal((table.num_rows, 24)).tolist())
    columns = {"start": pa.array(starts), "other": pa.array(other), "another": pa.array(other), "vector": vectors}
    for name, column in columns.items():
        table = table.append_column(name, column)
    path = tmp_path_factory.mktemp("data") / "pairs.parquet"
    pq.write_table(table, path)
    return path


def rows(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "metrics.jsonl")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name}/{name}" if path.parent != folder else name: tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_close(found: Path, expected: Path, *, metrics: float, tensors: float) -> None:
    """Check that two runs have the same metrics, to a relative error, and weights, relative to a tensor's largest."""
    one, two = rows(expected), rows(found)
    assert [row.keys() for row in two] == [row.keys() for row in one]
    for name in {name for row in one for name in row}:
        values = [[row[name] for row in rows if name in row] for rows in (two, one)]
        assert values[0] == pytest.approx(values[1], rel=metrics), name
    own, other = weights(expected), weights(found)
    assert own.keys() == other.keys()
    for name, tensor in own.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=tensors * tensor.abs().max().item(), msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "name"), CASES)
def test_two_processes_equal_one_with_the_double_batch(
    tiny_llama: Path, data: Path, tmp_path: Path, how: str, name: str
) -> None:
    """Held-out measures too; and each process stores half of a model that is split.

    A gradient is a sum over at most 8 · 24 tokens, and two processes sum in another order: 192 roundings of 2⁻²⁴ are
    1e-5 of the sum of magnitudes. The largest entry cancels by less than a factor of ten, so that is 1e-4 of it.
    """
    (tmp_path / "two").mkdir()
    command = [*TORCHRUN, "2", "-m", "tests.training.ranks", str(tiny_llama), str(data), str(tmp_path / "two")]
    subprocess.run([*command, how, name], env=environment(), cwd=ROOT, check=True, timeout=240)
    train(name, tiny_llama, data, tmp_path, processes=1)
    assert_close(tmp_path / "two" / name, tmp_path / name, metrics=1e-5, tensors=1e-4)
    assert Encoder.from_pretrained(tmp_path / "two" / name, device="cpu").encode(["A text."]).shape[0] == 1
    stored = [json.loads((tmp_path / "two" / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    every = {kind: stored[0][kind] + stored[1][kind] for kind in stored[0]}
    if how == "split":
        assert stored[0] == stored[1]  # every dimension of the tiny model is even
    else:
        every = stored[0]
    trained = every["gradients"]
    assert trained == every["optimizer"]
    assert trained == every["weights"] if name == "full" else trained < every["weights"]
    if name in ("full", "contrastive"):
        total = 99_136 if name == "full" else 131_904  # with the adapter
        assert every["weights"] == 4 * total


ADAPT = ["-m", "fastvec", "adapt", "--objective", "mntp", "--data", str(ARTICLES), "--column", "text", "--steps", "16"]
ADAPT += ["--max-length", "32", "--dtype", "float32", "--device", "cpu", "--save-every", "4", "--lr", "1e-3"]


def start(model: Path, output: Path, ranks: int, *options: str) -> subprocess.Popen[str]:
    launch = [*TORCHRUN, str(ranks)] if ranks > 1 else [sys.executable]
    batch = ["--batch-size", str(8 // ranks)]
    command = [*launch, *ADAPT, "--model", str(model), "-o", str(output), *batch, *options]
    return subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run to end well, and return what it said."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def process_of_rank(launcher: int, rank: int) -> int:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return next(int(child) for child in children if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text())


def wait_for_checkpoint(process: subprocess.Popen[str], part: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not (part / f"checkpoint-{step}" / "fastvec_place.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process of a rank in /proc")
@pytest.mark.parametrize(("split", "ranks", "split_later"), [(True, 2, True), (True, 1, False), (False, 4, True)])
def test_a_run_that_lost_a_rank_resumes_with_any_number_of_ranks(
    tiny_llama: Path, tmp_path: Path, split: bool, ranks: int, split_later: bool
) -> None:
    """With the same number the result is the same to the last digit, with others up to rounding.

    AdamW divides a gradient by its own size, so the error of a weight is not that of its gradient: 1e-3 of the largest
    weight is 16 steps that differ by 6 % of a step where the gradient is small.
    """
    options = ["--fsdp"] * split
    finish(start(tiny_llama, tmp_path / "whole", 2, *options))
    lost = start(tiny_llama, tmp_path / "lost", 2, *options)
    wait_for_checkpoint(lost, tmp_path / "lost.part", 8)
    os.kill(process_of_rank(lost.pid, 1), signal.SIGKILL)
    _, said = lost.communicate(timeout=60)
    assert lost.returncode == 1
    assert re.findall("^fastvec: .*", said, re.M) == [
        "fastvec: rank 0 lost its connection to another rank, whose process or machine ended: run the same command "
        "again to resume from the last checkpoint"
    ]
    assert "[rank" not in said  # the traceback of a rank
    assert not (tmp_path / "lost").exists()
    finish(start(tiny_llama, tmp_path / "lost", ranks, *["--fsdp"] * split_later))
    assert json.loads((tmp_path / "lost" / "fastvec.json").read_text())["fingerprint"]["steps"] == 16
    if ranks == 2:
        assert rows(tmp_path / "lost") == rows(tmp_path / "whole")
        for name, tensor in weights(tmp_path / "whole").items():
            assert torch.equal(weights(tmp_path / "lost")[name], tensor)
    else:
        assert_close(tmp_path / "lost", tmp_path / "whole", metrics=1e-4, tensors=1e-3)


@pytest.mark.slow
def test_an_error_of_several_ranks_is_one_line_and_a_signal_stops_all(tiny_llama: Path, tmp_path: Path) -> None:
    for options, message in (
        (["--column", "nope"], "articles.parquet: there is no column 'nope'"),  # every rank finds it, before it starts
        (["--batch-size", "4000"], "too little data: it has .* examples.*, and a batch needs 8000"),  # while it trains
    ):
        failed = start(tiny_llama, tmp_path / "out", 2, *options)
        _, said = failed.communicate(timeout=120)
        assert failed.returncode == 1
        (line,) = re.findall("^fastvec: .*", said, re.M)
        assert re.search(message, line)
        assert "[rank" not in said
    stopped = start(tiny_llama, tmp_path / "stopped", 2, "--fsdp")
    wait_for_checkpoint(stopped, tmp_path / "stopped.part", 4)
    stopped.terminate()
    _, said = stopped.communicate(timeout=120)
    (line,) = re.findall("^fastvec: .*", said, re.M)
    assert re.fullmatch(r"fastvec: stopped by SIGTERM at step \d+ of 16: run the same command again to resume", line)
    assert "[rank" not in said
