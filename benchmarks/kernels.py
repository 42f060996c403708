"""Benchmarks the kernels: measures the device's peak rates, then every implementation on every shape.

    python -m benchmarks.kernels attention|pooling|rms_norm|rope|rope_attention|swiglu|gated_linear|dropout|quantize

Results are checked before they are timed: a wrong result makes the row FAILED and the exit code 1. Without a GPU
nothing is timed: small shapes are checked in Triton's interpreter, and kernels are compiled for sm_90.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

import click
import torch

from benchmarks.ops.attention_tiles import tile_report
from benchmarks.ops.attention_tuning import tune
from benchmarks.ops.measurement import FASTVEC, WORKLOAD_BUILDERS, rows_of
from benchmarks.ops.roofline import Ceilings, measure_ceilings
from benchmarks.ops.shapes import SHAPES, SMALL_SHAPES, Shape, with_real_lengths
from benchmarks.reporting.plots import plot
from benchmarks.reporting.results import HEADER, Row, append_option, append_row, as_json, environment, write_json
from fastvec_kernels._launch import kernels_on_cpu

WITHOUT_GPU = """No GPU: times, rates and ceilings cannot be measured, and other libraries' kernels cannot run.
This run checks results on small shapes and compiles the kernels."""
ON_GPU = torch.cuda.is_available()


@click.command()
@click.argument("op", type=click.Choice(list(SHAPES)))
@click.option(
    "--shapes",
    multiple=True,
    default=["*"],
    help="Only shapes whose name matches this glob, e.g. 'd128 32/8 *'; repeat for more.",
)
@click.option(
    "--implementations", default="*", help="Only implementations whose name matches this glob, e.g. 'fastvec'."
)
@click.option(
    "--lengths",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of sequence lengths to use, one per line.",
)
@click.option("--seconds", type=float, default=float("inf"), help="Start no further shape after this many seconds.")
@click.option("--tune", "tuning", is_flag=True, help="attention: time every candidate of the configuration table.")
@click.option("--check", is_flag=True, help="Check results only; without a GPU set TRITON_INTERPRET=1.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for OP.json and OP.png.")
@append_option
def main(
    op: str,
    shapes: tuple[str, ...],
    implementations: str,
    lengths: Path | None,
    seconds: float,
    tuning: bool,
    check: bool,
    out: Path | None,
    append: Path | None,
) -> None:
    if not ON_GPU and not check:
        sys.exit(without_gpu(op, out))
    torch.manual_seed(0)
    if tuning:
        sys.exit(tune(seconds, out, append))
    table = (SHAPES if ON_GPU else SMALL_SHAPES)[op]
    if lengths is not None:
        table = with_real_lengths(table, lengths)
    chosen = [shape for glob in shapes for shape in table if fnmatch(shape.name, glob)]
    if not chosen:
        raise click.UsageError(
            f"--shapes {', '.join(shapes)} matches none of: {', '.join(shape.name for shape in table)}"
        )
    print(", ".join(f"{name} {value}" for name, value in environment().items() if value))
    ceilings = None if check else measure_ceilings()
    if ceilings is not None:
        print(ceilings)
    print(HEADER)
    rows = []
    for row in measured(op, chosen, ceilings, implementations if ON_GPU else FASTVEC, seconds):
        print(row, flush=True)
        rows.append(row)
        if append is not None:
            append_row(append, {"benchmark": "kernels", **asdict(row)})
        if out is not None:  # after each row, so that a stopped run keeps its rows
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / f"{op}.json", as_json(rows, ceilings))
    if out is not None:
        plot(rows, f"{op}, {environment()['gpu']}", out / f"{op}.png")
    sys.exit(any(row.failed for row in rows))


def measured(
    op: str, shapes: list[Shape], ceilings: Ceilings | None, implementations: str, seconds: float
) -> Iterator[Row]:
    device, dtype = ("cuda", torch.bfloat16) if ON_GPU else ("cpu", torch.float32)
    if op == "rope_attention" and not ON_GPU:
        dtype = torch.float16  # its kernel has no tiles for float32
    begin = time.monotonic()
    with nullcontext() if ON_GPU else kernels_on_cpu():
        for shape in shapes:
            if time.monotonic() - begin > seconds:
                print(f"{shape.name:34} skipped: {seconds:.0f} s are over")
                continue
            workload = WORKLOAD_BUILDERS[op](shape, device, dtype)
            yield from rows_of(workload, ceilings, implementations=implementations, timed=ceilings is not None)


def without_gpu(op: str, out: Path | None) -> int:
    """Check and compile in two processes, as Triton defines a kernel for either its interpreter or its compiler."""
    print(WITHOUT_GPU, flush=True)
    if op == "attention":
        print(tile_report(), flush=True)
    to = [] if out is None else ["--out", str(out)]
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    checking = [sys.executable, "-m", "benchmarks.kernels", op, "--check", *to]
    compiling = [sys.executable, "-m", "benchmarks.aot", "--quick", "--only", op, *to]
    checked = subprocess.run(checking, check=False, env={**environ, "TRITON_INTERPRET": "1"})
    compiled = subprocess.run(compiling, check=False, env=environ)
    return int(checked.returncode != 0 or compiled.returncode != 0)


if __name__ == "__main__":
    main()
