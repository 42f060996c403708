"""Memory does not grow with the number of batches; `benchmarks/memory.py` measures whole runs."""

import os
import subprocess
import sys

import pytest

from tests import ROOT

SCRIPT = """
from fastvec.report import peak_memory_bytes  # with the package, which bounds oneDNN's caches before torch has them

import torch

weights = [torch.randn(shape, dtype=torch.bfloat16) for shape in ((64, 64), (32, 64), (172, 64), (64, 172))]

def multiply(tokens):
    for weight in weights:
        torch.nn.functional.linear(torch.randn(tokens, weight.shape[1], dtype=torch.bfloat16), weight)

multiply(3000)
before = peak_memory_bytes()
for tokens in range(3000, 3150):
    multiply(tokens)
print((peak_memory_bytes() - before) / 2**20)
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak memory of one process")


def growth(**environment: str) -> float:
    """Return how much the peak memory of `SCRIPT` grows, in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@pytest.mark.slow
@linux
def test_batches_of_ever_new_sizes_are_not_remembered() -> None:
    """oneDNN would otherwise cache each compiled product twice; its size depends on the processor."""
    kept = growth(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")
    allocator = 32  # MiB, the peak's own variation; a product of 3,150 rows takes 1 MiB
    if kept < 4 * allocator:
        pytest.skip(f"oneDNN would keep {kept:.0f} MiB of compiled products on this CPU, too little to be told apart")
    assert growth() < kept / 4


@linux
def test_a_peak_is_of_this_process_not_of_the_one_that_started_it() -> None:
    large = bytearray(400 << 20)
    large[::4096] = b"x" * len(large[::4096])  # touch every page
    script = "from fastvec.report import peak_memory_bytes; print(peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 10 << 20 < int(done.stdout) < 300 << 20
