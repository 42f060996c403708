"""Result rows of the kernel benchmarks: printing, saving as JSON, and the environment of the measurement."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.ops.roofline import Ceilings
from benchmarks.ops.timing import Timing

HEADER = (
    f"{'shape':34} {'implementation':22} {'direction':9} {'median':>9} {'p20':>9} {'p80':>9} {'host':>7} "
    f"{'TFLOP/s':>8} {'GB/s':>7} {'% of peak':>9} {'error':>8}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One implementation on one shape. `status` is ok, starts with FAILED, or says why the row has no figures."""

    op: str
    group: str
    shape: str
    implementation: str
    direction: str
    status: str
    error: float | None = None  # relative error of the worst row; None if nothing ran
    timing: Timing | None = None  # None without a GPU
    bytes: int = 0
    flops: float | None = None
    ceiling: float | None = None  # measured peak for this op's bound: bytes/s or FLOP/s

    @property
    def failed(self) -> bool:
        return self.status.startswith("FAILED")

    @property
    def rate(self) -> float | None:
        """FLOP/s if the op is bound by matrix products, else bytes/s; None without a time."""
        return None if self.timing is None else (self.flops or self.bytes) / self.timing.median

    @property
    def fraction(self) -> float | None:
        return None if self.rate is None or self.ceiling is None else self.rate / self.ceiling

    def __str__(self) -> str:
        start = f"{self.shape:34} {self.implementation:22} {self.direction:9}"
        if self.status != "ok" or self.timing is None:
            error = "" if self.error is None else f", error {self.error:.1e}"
            return f"{start} {self.status}{error}"
        t = self.timing
        tflops = f"{self.flops / t.median / 1e12:8.1f}" if self.flops else " " * 8
        of_peak = "" if self.fraction is None else f"{self.fraction:.0%}"
        return (
            f"{start} {t.median * 1e6:6.1f} µs {t.p20 * 1e6:6.1f} µs {t.p80 * 1e6:6.1f} µs {t.host * 1e6:4.0f} µs "
            f"{tflops} {self.bytes / t.median / 1e9:7.0f} {of_peak:>9} {self.error:8.1e}"
        )


def environment() -> dict[str, str | None]:
    """Return the CPU and its vector and matrix instructions, the GPU, driver, versions, commit and date."""
    triton_version = None
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        pass
    return {
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": triton_version,
        "python": platform.python_version(),
        "commit": _output_of("git", "rev-parse", "--short", "HEAD"),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the CPU's name and number of cores, and its flags for vectors and matrices where Linux lists them."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in found.get("flags", "").split() if flag.startswith(("avx", "amx", "fma"))]
    name = found.get("model name", platform.processor())
    return f"{os.cpu_count()} cores of {name} ({' '.join(flags)})"


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def as_json(rows: Iterable[Row], ceilings: Ceilings | None) -> dict[str, Any]:
    return {
        "environment": environment(),
        "ceilings": None if ceilings is None else asdict(ceilings),
        "rows": [{**asdict(row), "rate": row.rate, "fraction": row.fraction} for row in rows],
    }


def write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


append_option = click.option(
    "--append",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to append each result to, as a line of JSON, as soon as it is known.",
)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a file of JSON lines, so that an interrupted run keeps those before it."""
    with path.open("a") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()


def first_line(error: Exception) -> str:
    """Return the type and the first line of an error, for a row's status."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
