"""Energy that processors and GPUs have used, as far as their drivers tell: Linux' RAPL counters and NVML's.

RAPL's files belong to root on most machines; NVML is asked through `pynvml` where it is installed. Counters are of
whole packages and boards: what else runs there is counted too.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")

Counters = Mapping[str, tuple[float, float]]  # a counter's joules, and where it begins again from 0


def counters(folder: Path = RAPL) -> Counters:
    """Every counter that can be read now."""
    return {**_packages(folder), **_gpus()}


def used(before: Counters, after: Counters) -> float | None:
    """The joules between two readings, of the counters in both; None without one."""
    common = before.keys() & after.keys()
    if not common:
        return None
    return sum((after[name][0] - before[name][0]) % after[name][1] for name in common)


def _packages(folder: Path) -> Counters:
    """A counter for each package; those of its cores and memory (`intel-rapl:0:1`) are parts of it."""
    found = {}
    for package in sorted(folder.glob("intel-rapl:*")):
        if package.name.count(":") > 1:
            continue
        try:
            joules, wraps = (int((package / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj"))
        except OSError:  # not ours to read
            continue
        found[package.name] = (joules, wraps)
    return found


def _gpus() -> Counters:
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # not installed, or no driver: its errors are its own
        return {}
    found = {}
    for number in range(nvml.nvmlDeviceGetCount()):
        try:
            millijoules = nvml.nvmlDeviceGetTotalEnergyConsumption(nvml.nvmlDeviceGetHandleByIndex(number))
        except nvml.NVMLError:  # older than Volta
            continue
        found[f"gpu {number}"] = (millijoules / 1e3, float("inf"))
    return found
