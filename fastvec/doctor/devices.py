"""Check torch, the processor and the GPUs."""

import ctypes
import math
import os
import platform
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from fastvec.doctor.report import Outcome, outcome
from fastvec.system.limits import core_count, core_quota

CPUINFO = Path("/proc/cpuinfo")
# of what /proc/cpuinfo lists, what matters for matrix products, on x86-64 and on ARM
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx_vnni", "avx512_vnni", "amx_bf16", "sve", "bf16", "i8mm")
NVIDIA_DRIVER, NVIDIA_GPUS, DEVICES = (
    Path("/proc/driver/nvidia/version"),
    Path("/proc/driver/nvidia/gpus"),
    Path("/dev"),
)
SMI_SECONDS = 20.0
HIDDEN = {"", "-1"}  # values of CUDA_VISIBLE_DEVICES that hide all GPUs
CPU_MEANT = "set CUDA_VISIBLE_DEVICES= to use the CPU"


def check_torch(_: Any) -> Outcome:
    import torch

    built = "for CPUs"
    if torch.version.hip is not None:
        built = f"for ROCm {torch.version.hip}"
    elif torch.version.cuda is not None:
        built = f"for CUDA {torch.version.cuda}"
    found, installed = f"{torch.__version__}, built {built}", metadata.version("torch")
    if _release(torch.__version__) != _release(installed):
        return outcome(found, notes=[f"the installed torch is {installed}: look for another one on PYTHONPATH"])
    return outcome(found)


def check_processor(_: Any) -> Outcome:
    import torch

    from fastvec.settings import resolve_dtype

    name, flags = _cpuinfo()
    known = [flag for flag in INSTRUCTIONS if flag in flags]
    threads, cores, quota = torch.get_num_threads(), core_count(), core_quota()
    usable = cores if quota is None else min(cores, max(math.ceil(quota), 1))
    limited = f" and the time of {quota:g}" if quota is not None and quota < cores else ""
    found = (
        f"{name}, {cores} cores{limited}, {threads} threads; {' '.join(known) or 'no vector instructions known'}; "
        f"on a CPU, dtype auto is {resolve_dtype('cpu')}"
    )
    notes = []
    if threads > usable:
        notes.append(f"torch starts {threads} threads for {usable} cores, which is slow: set OMP_NUM_THREADS={usable}")
    elif "OMP_NUM_THREADS" in os.environ and threads < usable // 2:  # torch takes one for two hyperthreads
        notes.append(f"OMP_NUM_THREADS leaves {usable} cores to {threads} threads: unset it, or set it to {usable}")
    if platform.machine().lower() in ("x86_64", "amd64") and flags and "avx2" not in flags:
        notes.append("without AVX2, a forward takes several times as long: use a newer CPU, or a GPU")
    return outcome(found, notes=notes)


def _cpuinfo() -> tuple[str, list[str]]:
    """Return the processor's name and its flags; none if the system does not say."""
    text = CPUINFO.read_text() if CPUINFO.exists() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    named = {name.strip(): value.strip() for name, value in fields.items()}
    flags = (named.get("flags") or named.get("Features") or "").split()
    return named.get("model name") or platform.machine(), flags


def check_gpus(_: Any) -> Outcome:
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        return _usable_gpus()
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in HIDDEN:
        return outcome("none: hidden by CUDA_VISIBLE_DEVICES")
    driver = _nvidia_driver()
    if driver is None:
        return outcome("none: the CPU computes, by PyTorch's operations")
    if torch.version.cuda is None:
        remedy = "install a build of torch for CUDA with the selector on pytorch.org"
        return outcome("", failures=[f"{driver} is here, and torch is built without CUDA: {remedy}, or {CPU_MEANT}"])
    supported = _driver_cuda()
    if supported and _major(supported) < _major(torch.version.cuda):
        remedy = f"update the driver, or install a build of torch for CUDA {_major(supported)}"
        problem = f"{driver} supports CUDA {supported}, and torch is built for {torch.version.cuda}"
        return outcome("", failures=[f"{problem}: {remedy}"])
    if not list(DEVICES.glob("nvidia[0-9]*")):
        remedy = "give the container its GPUs (docker run --gpus all), or the job of the scheduler"
        return outcome("", failures=[f"{driver} is here, but no device file /dev/nvidia0: {remedy}; or {CPU_MEANT}"])
    why = " ".join(str(said[-1].message).split())[:200] if said else "no reason is given"
    return outcome("", failures=[f"{driver} is here, and torch cannot use it ({why}): restart it, or {CPU_MEANT}"])


def _usable_gpus() -> Outcome:
    import torch

    found, notes, failures = [], [], []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        row = _architecture(number)
        named = f"{properties.name} ({row or 'no kernels'})"
        found.append(f"{number}: {named}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
        if row is None:
            notes.append(f"{number} runs on PyTorch's operations: the kernels are for sm_80 and newer, and gfx942")
        if free < total / 2:
            notes.append(f"other processes hold {(total - free) / 1e9:.1f} GB of {number}: end them (nvidia-smi)")
        if torch.version.hip is None and not _has_code((properties.major, properties.minor)):
            compiled = " ".join(torch.cuda.get_arch_list())
            problem = f"{number} has compute capability {properties.major}.{properties.minor}"
            failures.append(f"{problem}, and torch is built for {compiled}: install another build, or {CPU_MEANT}")
    if torch.version.hip is None:
        found.append(f"{_nvidia_driver() or 'driver'} supports CUDA {_driver_cuda() or 'unknown'}")
    return outcome("; ".join(found), notes=notes, failures=failures)


def _architecture(number: int) -> str | None:
    import torch

    from fastvec_kernels._launch import architecture

    return architecture(torch.device("cuda", number))


def _has_code(capability: tuple[int, int]) -> bool:
    """Return whether torch has code for a GPU: of its generation and not newer, or to be compiled for it."""
    import torch

    for name in torch.cuda.get_arch_list():  # such as sm_90, sm_90a and compute_120
        kind, _, digits = name.partition("_")
        number = digits.rstrip("af")
        major, minor = int(number[:-1]), int(number[-1])
        if (kind == "compute" or major == capability[0]) and (major, minor) <= capability:
            return True
    return False


def _nvidia_driver() -> str | None:
    """Return a description of NVIDIA's driver and GPUs; None if there are none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return _loaded_driver()
    gpus = [line.rpartition(", ") for line in done.stdout.splitlines() if line]
    return f"{gpus[0][0]} with driver {gpus[0][2]}" if gpus else None


def _loaded_driver() -> str | None:
    """Return the same by the kernel's module, where nvidia-smi is missing or fails."""
    if not NVIDIA_DRIVER.exists() or (NVIDIA_GPUS.is_dir() and not any(NVIDIA_GPUS.iterdir())):
        return None
    version = next((word for word in NVIDIA_DRIVER.read_text().split() if _is_version(word)), "unknown")
    return f"an NVIDIA GPU with driver {version}"


def _is_version(word: str) -> bool:
    return "." in word and all(part.isdecimal() for part in word.split("."))


def _driver_cuda() -> str | None:
    """Return the newest CUDA that the driver supports; None if its library is not found."""
    number = ctypes.c_int()
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        failed = library.cuDriverGetVersion(ctypes.byref(number))
    except (AttributeError, OSError):
        return None
    return None if failed else f"{number.value // 1000}.{number.value % 1000 // 10}"


def _release(version: str) -> str:
    """Return a version without its build, such as +cu128, which the metadata of PyPI's wheels does not have."""
    return str(version).partition("+")[0]


def _major(version: str) -> int:
    return int(version.partition(".")[0])
