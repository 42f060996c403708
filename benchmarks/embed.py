"""Compares fastvec with other embedding engines: the same model, rows and machine, in one run.

    PYTHONPATH=.:kernels python -m benchmarks.embed corpus.parquet [--shape 25M] [--mix wiki] [--rows 2000] [-o OUT]

For fastvec the whole command is timed, from starting Python and reading Parquet to the finished Arrow file. For the
others only encoding is timed, with the texts in memory and the model warm. Each contestant runs in its own process.
Rounds alternate, so that a slowdown of the machine affects all contestants. "% of peak" is useful FLOP/s (for the
tokens alone, without padding) as a share of the rate of a square matrix product in the same dtype, measured in every
round. Energy is reported if a driver reports it. The command fails if the contestants' vectors differ.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.engines import energy
from benchmarks.engines.contestant import FASTVEC_VARIANTS, NAMES
from benchmarks.engines.engines import BATCH_SIZES, QUANTIZED, device
from benchmarks.engines.models import MIXES, MODEL_SHAPES, ModelShape, read_mix, save_random_model
from benchmarks.ops.roofline import product_rate
from benchmarks.reporting.plots import picture
from benchmarks.reporting.results import environment, write_json
from fastvec.checkpoints.checkpoint import resolve
from fastvec.settings import resolve_dtype
from fastvec.texts.from_files import tokenizer_from_files
from fastvec.texts.tokenizer import TextRecipe, TextTokenizer

DEVICE = device()
CPU_MATRIX = 2048
LEAST_COSINE = 0.999
LEAST_COSINE_QUANTIZED = 0.98


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The rows of a run, and their tokens and FLOPs."""

    shape: str
    mix: str
    rows: int
    tokens: int
    flops: float
    padded: int  # tokens if batches of consecutive rows are padded to their longest text


@dataclass(kw_only=True, slots=True)
class Result:
    """Measurements of a contestant, one per round; `missing` says why there are none."""

    name: str
    dtype: str
    seconds: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # useful FLOP/s / matrix product rate
    joules: list[float] = field(default_factory=list)  # empty if no driver reports energy
    memory: int = 0
    device_memory: int | None = None
    cosine: float | None = None  # lowest cosine similarity with the first contestant's vectors
    missing: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.dtype}"


@click.command()
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--column", default="text", show_default=True)
@click.option("--shape", type=click.Choice(list(MODEL_SHAPES)), default="25M", show_default=True)
@click.option("--mix", type=click.Choice(list(MIXES)), default="wiki", show_default=True)
@click.option("--rows", type=int, help="[default: 2,000; on a GPU more for small models, up to the whole corpus]")
@click.option("--rounds", default=3, show_default=True)
@click.option("--dtype", "dtypes", multiple=True, help="Repeat for more. [default: what fastvec chooses here, float32]")
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Repeat for more. [default: all]")
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the model whose tokenizer to use. [default: bundled]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the JSON report and the PNG plot.",
)
def main(
    corpus: Path, column: str, shape: str, mix: str, rows: int | None, rounds: int, output: Path | None, **given: Any
) -> None:
    """Time fastvec and every other engine that is installed."""
    dtypes = given["dtypes"] or tuple(dict.fromkeys([resolve_dtype(DEVICE), *["float32"] * (DEVICE == "cpu")]))
    results = [Result(name=name, dtype=dtype) for dtype in dtypes for name in given["only"] or NAMES]
    max_length = MIXES[mix][0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_random_model(
            folder / "model", MODEL_SHAPES[shape], max_length=max_length, tokenizer=given["tokenizer"]
        )
        texts = read_mix(corpus, column, mix, rows, at_most=rows_for(MODEL_SHAPES[shape]))
        pq.write_table(pa.table({"text": texts}), folder / "rows.parquet")
        workload = counted(texts, model, shape, mix, max_length)
        for _ in range(rounds):
            ceilings = {dtype: matrix_rate(dtype) for dtype in dtypes}
            for result in results:
                run_contestant(result, workload, ceilings[result.dtype], model, folder, max_length)
        compare_vectors(results, folder)
    click.echo("\n".join(table(workload, results)))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        stem = f"embed-{shape}-{mix}"
        write_json(
            output / f"{stem}.json",
            {"environment": environment(), "workload": asdict(workload), "results": [asdict(one) for one in results]},
        )
        plot(workload, results, output / f"{stem}.png")
    if any(one.cosine is not None and one.cosine < least_cosine(one) for one in results):
        raise click.ClickException("the contestants' vectors differ: see the cosine column")


def rows_for(shape: ModelShape) -> int:
    """Return the default number of rows: more on a GPU and for small models, where start-up would dominate the run."""
    return 2000 if DEVICE == "cpu" else max(2000, int(1e13 / shape.parameters))


def least_cosine(result: Result) -> float:
    """Return the minimum cosine similarity of a result's vectors with the first contestant's."""
    quantized = FASTVEC_VARIANTS.get(result.name) or result.name in QUANTIZED
    return LEAST_COSINE_QUANTIZED if quantized else LEAST_COSINE


def counted(texts: Sequence[str], model: Path, shape: str, mix: str, max_length: int) -> Workload:
    tokenizer = tokenizer_from_files(resolve(model))
    if tokenizer is None:
        raise click.UsageError(
            f"the tokenizer of {model} cannot be loaded from its files alone: choose another with --tokenizer"
        )
    lengths = TextTokenizer(tokenizer, TextRecipe(max_length=max_length))(texts).lengths.tolist()
    size = BATCH_SIZES[DEVICE]
    padded = sum(size_of(lengths[begin : begin + size]) for begin in range(0, len(lengths), size))
    flops = MODEL_SHAPES[shape].flops(lengths)
    return Workload(shape=shape, mix=mix, rows=len(texts), tokens=sum(lengths), flops=flops, padded=padded)


def size_of(lengths: Sequence[int]) -> int:
    """Return the number of tokens in a batch that is padded to its longest text."""
    return max(lengths) * len(lengths)


def matrix_rate(dtype: str, seconds: float = 1.0) -> float:
    """Return the FLOP/s of a square product of random matrices; on a CPU the best rate within `seconds`."""
    if DEVICE == "cuda":
        return product_rate(getattr(torch, dtype))
    a, b = (torch.randn(CPU_MATRIX, CPU_MATRIX).to(getattr(torch, dtype)) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * CPU_MATRIX**3 / best


def run_contestant(
    result: Result, workload: Workload, ceiling: float, model: Path, folder: Path, max_length: int
) -> None:
    if result.missing:
        return
    vectors = vectors_of(result, folder)
    arguments = [result.name, model, folder / "rows.parquet", vectors, result.dtype, max_length]
    command = [sys.executable, "-m", "benchmarks.engines.contestant", *map(str, arguments)]
    before, started = energy.counters(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    whole, joules = time.perf_counter() - started, energy.used(before, energy.counters())
    if done.returncode:
        result.missing = f"failed: {(done.stderr.strip().splitlines() or ['no error output'])[-1]}"
        return
    found = json.loads(done.stdout.strip().splitlines()[-1])
    result.missing = found.get("missing", "")
    if result.missing:
        return
    seconds = found.get("seconds", whole)
    result.seconds.append(seconds)
    if (joules := found.get("joules", joules)) is not None:
        result.joules.append(joules)
    result.shares.append(workload.flops / seconds / ceiling)
    result.memory = max(result.memory, found["memory"])
    result.device_memory = found["device_memory"]


def vectors_of(result: Result, folder: Path) -> Path:
    return folder / f"{result.name.replace(', ', '-')}-{result.dtype}.npy"


def compare_vectors(results: Sequence[Result], folder: Path) -> None:
    """Set each result's `cosine` by comparing its saved vectors with those of the first contestant that ran."""
    ran = [result for result in results if result.seconds]
    vectors = [np.load(vectors_of(result, folder)) for result in ran]
    for result, own in zip(ran, vectors, strict=True):
        first = vectors[0]
        rows = min(len(own), len(first))
        result.cosine = float((own[:rows] * first[:rows]).sum(axis=1).min())


def table(workload: Workload, results: Sequence[Result]) -> list[str]:
    """Return the report, one line per contestant; ratios are medians of fastvec's speed / theirs in the same dtype."""
    saved = 1 - workload.tokens / workload.padded
    lines = [
        f"{workload.rows:,} rows, {workload.tokens:,} tokens, mix {workload.mix}; model of {workload.shape}; "
        f"{workload.flops / 1e12:.1f} TFLOP; padding in row order would be {saved:.0%}",
        f"{'contestant':44} {'rows/s':>8} {'tokens/s':>9} {'% of peak':>9} {'fastvec is':>22} "
        f"{'memory':>9} cosine  energy",
    ]
    own = {result.dtype: result for result in results if result.name == "fastvec"}
    for result in results:
        if not result.seconds:
            lines.append(f"{result.label:44} {result.missing}")
            continue
        seconds = statistics.median(result.seconds)
        spent = f"{statistics.median(result.joules):7,.0f} J" if result.joules else ""
        against = "" if result.name == "fastvec" or result.dtype not in own else ratio(own[result.dtype], result)
        lines.append(
            f"{result.label:44} {workload.rows / seconds:8,.0f} {workload.tokens / seconds:9,.0f} "
            f"{statistics.median(result.shares):9.0%} {against:>22} {result.memory / 2**20:5,.0f} MiB "
            f"{result.cosine:7.4f}{spent}"
        )
    return lines


def ratio(own: Result, other: Result) -> str:
    ratios = [theirs / ours for ours, theirs in zip(own.seconds, other.seconds, strict=False)]
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.2f}× ({min(ratios):.2f} to {max(ratios):.2f})"


def plot(workload: Workload, results: Sequence[Result], path: Path) -> None:
    """Plot rows/s, with a line for each dtype at the rate that 100 % of the matrix product rate would give."""
    ran = [result for result in results if result.seconds][::-1]
    rates = [workload.rows / statistics.median(result.seconds) for result in ran]
    with picture(path, figsize=(9, 1 + 0.5 * len(ran))) as (_, axes):
        axis = axes[0, 0]
        axis.barh(
            [result.label for result in ran], rates, color=["C0" if r.name in FASTVEC_VARIANTS else "C7" for r in ran]
        )
        for number, dtype in enumerate(dict.fromkeys(result.dtype for result in ran)):
            most = max(
                rate / statistics.median(result.shares)
                for rate, result in zip(rates, ran, strict=True)
                if result.dtype == dtype
            )
            axis.axvline(most, color=f"C{number + 1}", linestyle="--", linewidth=0.8, label=f"matrix rate, {dtype}")
        axis.set(xlabel="rows/s", title=f"{workload.shape}, mix {workload.mix}, {workload.rows:,} rows")
        axis.legend(fontsize="small")


if __name__ == "__main__":
    main()
