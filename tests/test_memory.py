"""Memory does not grow with the number of batches; `benchmarks/memory.py` measures whole runs."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource
import fastvec
import torch

weights = [torch.randn(shape, dtype=torch.bfloat16) for shape in ((64, 64), (32, 64), (172, 64), (64, 172))]

def multiply(tokens):
    for weight in weights:
        torch.nn.functional.linear(torch.randn(tokens, weight.shape[1], dtype=torch.bfloat16), weight)

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

multiply(3000)
before = peak_mib()
for tokens in range(3000, 3150):
    multiply(tokens)
print(peak_mib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in other units there")
def test_batches_of_ever_new_sizes_are_not_remembered() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 100  # 17 here; 380 with oneDNN's own cache sizes
