"""Runs every check and benchmark of the kernels that needs a GPU, in one command of less than nine minutes.

    python -m benchmarks.gpu OUT [--smoke]

It compiles the kernels for this device, runs their tests, benchmarks every op and tunes attention. Each part is a
process with a time limit; a failed part does not stop the others. It writes summary.md, results.json, log.txt and a PNG
per op to OUT. The exit code is 0 if every part passed. Without a GPU it runs what is possible and says what is missing.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import click
import torch

from benchmarks.kernels import ON_GPU, WITHOUT_GPU
from benchmarks.reporting.results import environment, write_json
from fastvec_kernels._launch import architecture

OPS = ("rms_norm", "rope", "swiglu", "dropout", "pooling")
# Shapes are measured in this order, the most important first: the time may not suffice for all.
ATTENTION_SHAPES = (
    "d128 32/8 *", "d64 16/16 512", "d64 16/16 2048", "d64 16/16 long-tail", "d256 16/8 512", "d256 16/8 2048",
    "d128 16/16 512", "d128 16/16 2048", "d64 16/16 short", "d64 16/16 uniform", "d64 32/8 *",
)  # fmt: skip
GRACE_SECONDS = 10
FLEX_SHAPES = ("d128 32/8 512", "d128 32/8 long-tail")  # few, because compiling takes many seconds per shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    name: str
    arguments: tuple[str, ...]  # python -m …
    seconds: float  # time limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    name: str
    status: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def __str__(self) -> str:
        return f"{self.name}: {self.status}, {self.seconds:.0f} s"


def parts(out: Path, *, smoke: bool) -> list[Part]:
    tests = ["tests/kernels/test_rms_norm.py"] if smoke else ["tests/kernels"]
    # library versions other than those the repository tests with may warn, which is no failure of a kernel
    pytest = ["pytest", "-q", "-W", "default", "-p", "no:cacheprovider", *tests]
    if importlib.util.find_spec("xdist") is not None:
        pytest += ["-n", str(min(14, os.cpu_count() or 1))]
    arch = architecture(torch.device("cuda" if ON_GPU else "cpu")) or "sm_90"
    chosen = [
        Part(
            name="compile",  # first, because it fills Triton's cache on all cores for the other parts
            arguments=("benchmarks.aot", "--arch", arch, "--out", str(out), *["--quick"] * smoke),
            seconds=90,
        ),
        Part(name="tests", arguments=tuple(pytest), seconds=150),
        *(benchmark(op, out, 30, smoke=smoke, more=("--implementations", "[!r]*") * ON_GPU) for op in OPS),
    ]
    if not ON_GPU:
        return [*chosen, *(benchmark(op, out, 30, smoke=smoke) for op in ("quantize", "attention"))]
    return [
        *chosen,
        benchmark("attention", out, 110, smoke=smoke, shapes=ATTENTION_SHAPES, more=("--implementations", "[!F]*")),
        benchmark("attention", out / "tuning", 60, smoke=smoke, name="tuning", more=("--tune",)),
        benchmark("quantize", out, 20, smoke=smoke),
        benchmark(
            "attention",
            out / "flex",
            40,
            smoke=smoke,
            name="FlexAttention",
            shapes=FLEX_SHAPES,
            more=("--implementations", "FlexAttention"),
        ),
        *(  # separate: torch.compile compiles each shape, forward and backward
            benchmark(op, out / op, 30, smoke=smoke, name=f"{op}, compiled", more=("--implementations", "r*"))
            for op in OPS
        ),
    ]


def benchmark(
    op: str,
    out: Path,
    seconds: float,
    *,
    smoke: bool,
    name: str | None = None,
    shapes: Iterable[str] = ("*",),
    more: Iterable[str] = (),
) -> Part:
    globs = [word for shape in shapes for word in ("--shapes", shape)]
    limit = [
        "--seconds",
        "1" if smoke else str(seconds - 12),
    ]  # the rest is for imports, the ceilings and the last shape
    arguments = ("benchmarks.kernels", op, "--out", str(out), *limit, *globs, *more)
    return Part(name=name or op, arguments=arguments, seconds=seconds)


def run_part(part: Part, seconds: float, log: TextIO) -> Outcome:
    """Run a part with its output in `log`, and stop it and its children after `seconds`.

    It gets an interrupt first, so that pytest can report the failures so far, and is killed after GRACE_SECONDS.
    """
    log.write(f"\n## {part.name}: python -m {' '.join(part.arguments)}\n\n")
    log.flush()
    begin = time.monotonic()
    command = [sys.executable, "-m", *part.arguments]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        code = process.wait(seconds)
        status = "passed" if code == 0 else f"FAILED with exit code {code}"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        status = "FAILED: stopped by its time limit"
    return Outcome(name=part.name, status=status, seconds=time.monotonic() - begin)


def collect(folder: Path) -> dict[str, Any]:
    """Return the JSON documents that the parts wrote, keyed by relative path: "rms_norm", "tuning/attention", …"""
    found = sorted(folder.rglob("*.json"))
    return {str(path.relative_to(folder).with_suffix("")): json.loads(path.read_text()) for path in found}


def summary(outcomes: Iterable[Outcome], documents: dict[str, Any], log: str) -> str:
    """Return a Markdown page with each part's outcome, the ceilings and the log."""
    where = ", ".join(f"{name} {value}" for name, value in environment().items() if value)
    lines = ["# Kernels on a GPU" if ON_GPU else f"# Kernels without a GPU\n\n{WITHOUT_GPU}", "", where, ""]
    lines += [f"- {outcome}" for outcome in outcomes]
    for name, document in documents.items():
        if isinstance(document, dict) and document.get("ceilings"):
            rates = document["ceilings"]
            lines.append(
                f"- {name}: copy {rates['copy'] / 1e12:.2f} TB/s, matrix product {rates['matrix'] / 1e12:.0f} TFLOP/s"
            )
    return "\n".join([*lines, "", "```", log.strip(), "```", ""])


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--smoke", is_flag=True, help="Run a minimal version of every part, to test this command.")
@click.option("--minutes", default=8.75, show_default=True, help="Time limit for all parts together.")
def main(out: Path, smoke: bool, minutes: float) -> None:
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * minutes
    outcomes = []
    with tempfile.TemporaryDirectory() as name, (out / "log.txt").open("w") as log:
        folder = Path(name)
        for part in parts(folder, smoke=smoke):
            outcomes.append(run_part(part, max(0, min(part.seconds, deadline - time.monotonic())), log))
            print(outcomes[-1], flush=True)
        documents = collect(folder)
        for picture in folder.glob("*.png"):
            shutil.copy(picture, out)
    write_json(out / "results.json", {"parts": [asdict(outcome) for outcome in outcomes], **documents})
    (out / "summary.md").write_text(summary(outcomes, documents, (out / "log.txt").read_text()))
    sys.exit(any(not outcome.passed for outcome in outcomes))


if __name__ == "__main__":
    main()
