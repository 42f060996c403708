"""Two processes over gloo match one process with twice the batch: same losses, same weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from fastvec.training.metrics import read_metrics
from tests import ROOT
from tests.training.ranks import OBJECTIVES, train

ARTICLES = ROOT / "tests" / "data" / "articles.parquet"


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


@pytest.fixture(scope="module")
def by_two(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two processes trained."""
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "tests.training.ranks", str(tiny_llama), str(data), str(folder)]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=240)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_equal_one_with_the_double_batch(
    tiny_llama: Path, data: Path, by_two: Path, tmp_path: Path, objective: str
) -> None:
    train(objective, tiny_llama, data, tmp_path, processes=1)
    folders = [folder / objective for folder in (tmp_path, by_two)]
    one, two = ([row for row in read_metrics(x / "metrics.jsonl") if "loss" in row] for x in folders)
    assert len(one) == 4
    for name in ("loss", "gradient_norm"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-5)
    weights, other = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    if objective == "distil":
        dense, other_dense = (load_file(folder / "2_Dense" / "model.safetensors") for folder in folders)
        weights, other = weights | dense, other | other_dense
    # A gradient is a sum over at most 8 · 24 tokens, and two processes sum in another order: 192 roundings of 2⁻²⁴ are
    # 1e-5 of the sum of magnitudes. The largest entry cancels by less than a factor of ten, so that is 1e-4 of it.
    for name, tensor in weights.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-4 * tensor.abs().max().item(), msg=name)
