"""Reads the energy used by processors and GPUs from Linux's RAPL counters and NVIDIA's NVML.

On most machines only root can read the RAPL files; NVML is read through `pynvml` if that is installed. Counters cover
whole packages and boards, so they include the energy of other processes.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")

Counters = Mapping[str, tuple[float, float]]  # by counter: joules, and the value in joules at which it wraps to 0


def counters(folder: Path = RAPL) -> Counters:
    """Return a reading of every counter that can be read."""
    return {**_packages(folder), **_gpus()}


def used(before: Counters, after: Counters) -> float | None:
    """Return the joules used between two readings, summed over the counters in both; None if they share no counter."""
    common = before.keys() & after.keys()
    if not common:
        return None
    return sum((after[name][0] - before[name][0]) % after[name][1] for name in common)


def _packages(folder: Path) -> Counters:
    """Read one counter per package; it includes those of its cores and memory (`intel-rapl:0:1`)."""
    found = {}
    for package in sorted(folder.glob("intel-rapl:*")):
        if package.name.count(":") > 1:
            continue
        try:
            joules, wraps = (int((package / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj"))
        except OSError:  # no permission to read it
            continue
        found[package.name] = (joules, wraps)
    return found


def _gpus() -> Counters:
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # not installed, or no driver; pynvml defines its own exceptions
        return {}
    found = {}
    for number in range(nvml.nvmlDeviceGetCount()):
        try:
            millijoules = nvml.nvmlDeviceGetTotalEnergyConsumption(nvml.nvmlDeviceGetHandleByIndex(number))
        except nvml.NVMLError:  # older than Volta
            continue
        found[f"gpu {number}"] = (millijoules / 1e3, float("inf"))
    return found
