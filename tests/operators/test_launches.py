"""What the host does for a layer of the fused path on a GPU, counted with a stand-in for the CUDA driver."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

# 5 operators with 40 calls each, from the operator to Triton's launch and back; 221 to 236 were counted with Triton 3.6
# and 3.9, and 278 with Triton's own search for the compiled kernel, of which profiling sees only the Python part
MOST_CALLS_A_LAYER = 250


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, as Triton does on a GPU")
@pytest.mark.skipif(sys.platform != "linux", reason="Triton and the stand-in are for Linux")
def test_a_layer_launches_five_kernels_without_looking_them_up(tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    source = ROOT / "tests/helpers/cuda_stub.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, "-m", "tests.helpers.stubbed_forward"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    layer = json.loads(done.stdout)
    # two norms, RoPE, attention of one length class, SwiGLU; the products are replaced
    assert layer["launches"] == 5
    assert layer["lookups"] == 0
    assert layer["functions"] <= MOST_CALLS_A_LAYER
