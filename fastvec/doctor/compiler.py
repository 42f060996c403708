"""Check what Triton needs to compile kernels: a C compiler, Python's headers, ptxas and a cache folder.

An op whose kernel cannot be compiled runs on PyTorch's operations, so nothing here is a failure.
"""

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastvec.doctor.report import Outcome, outcome
from fastvec.doctor.storage import check_cache

NO_GPU = "not needed: without a GPU, no kernels are compiled"
SLOWER = "else PyTorch's operations take the kernels' place, which is slower"


def check_compiler(_: Any) -> Outcome:
    import torch

    if not torch.cuda.is_available():
        return outcome(NO_GPU)
    return compiler(cuda=torch.version.hip is None)


def compiler(*, cuda: bool) -> Outcome:
    """Return what there is of it on a machine with a GPU, of NVIDIA if `cuda`."""
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        return outcome("", notes=[f"Triton is missing: pip install triton; {SLOWER}"])
    notes = []
    named = os.environ.get("CC")
    c_compiler = shutil.which(named) if named else shutil.which("gcc") or shutil.which("clang")
    if c_compiler is None:
        missing = f"CC names {named}, which is missing" if named else "no C compiler was found"
        notes.append(f"{missing}: install gcc; {SLOWER}")
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    if not headers.exists():
        notes.append(f"{headers} is missing: install Python's headers (python3-dev); {SLOWER}")
    if cuda:
        ptxas = Path(os.environ.get("TRITON_PTXAS_PATH") or Path(spec.origin).parent / "backends/nvidia/bin/ptxas")
        if not os.access(ptxas, os.X_OK):
            notes.append(f"{ptxas} cannot be run: install Triton again, or set TRITON_PTXAS_PATH; {SLOWER}")
    result, cache = check_cache(triton_cache(), 0, f"set TRITON_CACHE_DIR to a folder that can be written; {SLOWER}")
    if result != "ok":
        notes.append(cache)
    return outcome("" if notes else f"{c_compiler}; compiled kernels in {cache}", notes=notes)


def triton_cache() -> Path:
    """Return the folder where Triton keeps compiled kernels, which may not exist yet."""
    given = os.environ.get("TRITON_CACHE_DIR")
    home = os.environ.get("TRITON_HOME") or Path.home()
    return Path(given) if given else Path(home, ".triton", "cache")
