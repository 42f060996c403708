"""Two processes over gloo against one with the double batch: same losses, same weights."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from fastvec.training.curves import read_metrics

ROOT = Path(__file__).parent.parent.parent
ARTICLES = ROOT / "tests" / "data" / "articles.parquet"
COLUMNS = {
    "mntp": ["--column", "text", "--lora-dropout", "0.1"],
    "simcse": ["--column", "title", "--grad-cache", "3", "--temperature", "0.5"],
    "contrastive": [
        "--query",
        "title",
        "--positive",
        "start",
        "--negative",
        "other",
        "--warmup",
        "0",
        "--temperature",
        "0.5",
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Articles with their starts, and hard negatives that are missing in every third row."""
    table = pq.read_table(ARTICLES)
    starts = [text[:80] for text in table["text"].to_pylist()]
    other = [None if row % 3 == 0 else text for row, text in enumerate(starts[::-1])]
    path = tmp_path_factory.mktemp("data") / "pairs.parquet"
    pq.write_table(table.append_column("start", pa.array(starts)).append_column("other", pa.array(other)), path)
    return path


def train(objective: str, model: Path, data: Path, output: Path, *, processes: int) -> None:
    launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    command = ["fastvec", "adapt", "--objective", objective, "--model", str(model), "--data", str(data)]
    options = ["-o", str(output), "--steps=4", f"--batch-size={8 // processes}", "--max-length=24", "--lr=1e-3"]
    quietly = ["--dtype=float32", "--device=cpu", "--save-every=2", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", *launch, *command, *options, *quietly, *COLUMNS[objective]]
    subprocess.run(arguments, env=environment, check=True, timeout=240)


@pytest.mark.parametrize("objective", COLUMNS)
def test_two_processes_equal_one_with_the_double_batch(
    tiny_llama: Path, data: Path, tmp_path: Path, objective: str
) -> None:
    for processes in (1, 2):
        train(objective, tiny_llama, data, tmp_path / str(processes), processes=processes)
    losses = [
        [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in row] for name in "12"
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(losses[0]) == 4
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "12")
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, rtol=0, atol=5e-5, msg=name
        )  # a step of Adam is up to 1e-3 an entry
