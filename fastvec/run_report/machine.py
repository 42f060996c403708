"""Describes this machine and the versions of what ran."""

import platform
import sys
from importlib import metadata
from pathlib import Path

from fastvec import __version__
from fastvec.system.limits import core_count, memory_bytes

CPUINFO = Path("/proc/cpuinfo")
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "pyarrow", "numpy")


def machine(device: str) -> list[tuple[str, str]]:
    """Return rows that describe this machine; `device` says whether its GPU is one of them. Its name is left out."""
    rows = [("system", platform.platform()), ("processor", f"{_processor()}, {core_count()} cores for this process")]
    if device == "cuda" and "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():  # else those of a cluster's nodes
            rows.append(("GPU", torch.cuda.get_device_name()))
    if total := memory_bytes():
        rows.append(("memory", size(total)))
    return [*rows, ("Python", platform.python_version()), ("packages", ", ".join(_versions()))]


def size(number: int) -> str:
    """Return a number of bytes in the largest binary unit of which there is one."""
    for unit, digits in (("GiB", 1), ("MiB", 0), ("KiB", 0)):
        scale = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}[unit]
        if number >= scale:
            return f"{number / scale:,.{digits}f} {unit}"
    return f"{number} bytes"


def _processor() -> str:
    if CPUINFO.is_file():
        for line in CPUINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _versions() -> list[str]:
    found = [f"fastvec {__version__}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:  # no Triton outside Linux
            continue
    return found
