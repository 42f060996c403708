"""Measures the contestants of `benchmarks.embed` in rounds, each in its own process with a time limit.

A measurement has two times. `steady` is encoding alone, with the model loaded and warm. `whole` is a process from its
start to its end: starting Python, loading and encoding. fastvec takes two processes, the command for `whole` and the
embedding job on a warm encoder for `steady`. The other engines take one, and `whole` is without its warm-up. The
warm-up also does what is done only once, such as loading a GPU's kernels, so `whole` leaves that out for them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.engines.contestant import FASTVEC_VARIANTS
from benchmarks.engines.engines import Missing, device
from benchmarks.ops.roofline import product_rate
from fastvec.decoders.cpu_choices import PackedLinear, has_onednn
from fastvec.decoders.fused import Linear

CONTESTANT = (sys.executable, "-m", "benchmarks.engines.contestant")
CPU_MATRIX = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One contestant in one round: seconds, and peak memory in bytes."""

    whole: float
    steady: float
    share: float  # useful FLOP/s in `steady` / matrix product rate
    memory: int
    device_memory: int | None
    joules: float | None  # in `steady`; None if no driver reports energy


@dataclass(kw_only=True, slots=True)
class Result:
    """A contestant and its measurements, one per round; `missing` says why there are no more."""

    name: str
    dtype: str
    measurements: list[Measurement] = field(default_factory=list)
    cosine: float | None = None  # lowest cosine similarity with the first contestant's vectors
    missing: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.dtype}"

    @property
    def whole(self) -> list[float]:
        return [one.whole for one in self.measurements]

    @property
    def steady(self) -> list[float]:
        return [one.steady for one in self.measurements]


@dataclass(frozen=True, kw_only=True, slots=True)
class Runner:
    """Runs contestants on the texts in `rows.parquet` of `folder`, where they also save their first vectors."""

    model: Path
    folder: Path
    max_length: int
    limit: float  # seconds, for each process

    def vectors(self, name: str, dtype: str) -> Path:
        return self.folder / f"{name.replace(', ', '-')}-{dtype}.npy"

    def measure(self, name: str, dtype: str, fewest_seconds: float) -> Measurement:
        """Measure a contestant once; `fewest_seconds` is the time of encoding at 100 % of peak.

        Raises Missing, with the reason, if it does not run here, fails, or takes longer than the limit.
        """
        modes = ("whole", "steady") if name in FASTVEC_VARIANTS else ("steady",)
        runs = [self._run(name, dtype, mode) for mode in modes]
        whole, steady = runs[0], runs[-1]
        return Measurement(
            whole=whole["whole"],
            steady=steady["steady"],
            share=fewest_seconds / steady["steady"],
            memory=whole["memory"],
            device_memory=whole["device_memory"],
            joules=steady["joules"],
        )

    def _run(self, name: str, dtype: str, mode: str) -> dict[str, Any]:
        rows, vectors = self.folder / "rows.parquet", self.vectors(name, dtype)
        arguments = [name, self.model, rows, vectors, dtype, self.max_length, mode]
        started = time.perf_counter()
        lines = output_of([*CONTESTANT, *map(str, arguments)], self.limit).strip().splitlines()
        seconds = time.perf_counter() - started
        found: dict[str, Any] = json.loads(lines[-1])
        if "missing" in found:
            raise Missing(found["missing"])
        return {**found, "whole": seconds - found.get("warm_up", 0.0)}


def output_of(command: Sequence[str], limit: float) -> str:
    """Return what a command writes to stdout.

    Raises Missing if it fails, or if it takes more than `limit` seconds; it is then killed with its children.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            output, errors = process.communicate(timeout=limit)
        except BaseException as reason:  # the limit, or an interrupt, which does not reach the process's own session
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(reason, subprocess.TimeoutExpired):
                raise Missing(f"stopped after {limit:g} s") from None
            raise
    if process.returncode:
        raise Missing(f"failed: {(errors.strip().splitlines() or ['no error output'])[-1]}")
    return output


def run_rounds(
    runner: Runner, results: Sequence[Result], flops: float, *, rounds: int, until: float = float("inf")
) -> Iterator[tuple[int, Result, Measurement | None]]:
    """Measure every contestant in every round, and yield each round's number, result and measurement when it is known.

    A contestant whose measurement is missing is left out of later rounds. None is started when `time.perf_counter()`
    is past `until`.
    """
    for number in range(1, rounds + 1):
        running = [result for result in results if not result.missing]
        rates = {dtype: matrix_rate(dtype) for dtype in dict.fromkeys(result.dtype for result in running)}
        for result in running:
            measured = None
            try:
                if time.perf_counter() > until:
                    raise Missing("not run: the time of --seconds was over")
                measured = runner.measure(result.name, result.dtype, flops / rates[result.dtype])
                result.measurements.append(measured)
            except Missing as reason:
                result.missing = str(reason)
            yield number, result, measured


def matrix_rate(dtype: str, seconds: float = 1.0) -> float:
    """Return the FLOP/s of a square product of random matrices; on a CPU the best rate within `seconds`.

    On a CPU that is of torch's product or of oneDNN's linear, whichever is faster.
    """
    if device() == "cuda":
        return product_rate(getattr(torch, dtype))
    a, b = (torch.randn(CPU_MATRIX, CPU_MATRIX).to(getattr(torch, dtype)) for _ in range(2))
    kinds = (Linear, PackedLinear) if has_onednn(a.dtype) else (Linear,)
    best, until = float("inf"), time.perf_counter() + seconds
    with torch.inference_mode():
        products = [kind(b, None) for kind in kinds]
        while time.perf_counter() < until:
            for product in products:
                started = time.perf_counter()
                product(a)
                best = min(best, time.perf_counter() - started)
    return 2 * CPU_MATRIX**3 / best
