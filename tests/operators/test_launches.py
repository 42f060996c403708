"""What the host does for a layer of the fused path on a GPU, counted with a stand-in for the CUDA driver."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

# Some 26 calls of this project's functions for each operator; 103 and 133 were counted with Python 3.11. Later versions
# do not count comprehensions.
MOST_CALLS_A_LAYER = {"short": 110, "long": 140}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, as Triton does on a GPU")
@pytest.mark.skipif(sys.platform != "linux", reason="Triton and the stand-in are for Linux")
def test_a_layer_launches_few_kernels_without_looking_them_up(tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    source = ROOT / "tests/helpers/cuda_stub.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, "-m", "tests.helpers.stubbed_forward"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    layers = json.loads(done.stdout)
    # two norms, RoPE and attention of one length class (for short texts in one), SwiGLU; the products are replaced
    assert {name: layer["launches"] for name, layer in layers.items()} == {"short": 4, "long": 5}
    for name, layer in layers.items():
        assert layer["lookups"] == 0
        assert layer["functions"] <= MOST_CALLS_A_LAYER[name]
