"""Compares fastvec with other embedding engines: the same model, rows and machine, in one run.

    PYTHONPATH=.:kernels python -m benchmarks.embed corpus.parquet [--shape 25M] [--mix wiki] [--rounds 3] [-o OUT]

Each contestant has two times. "Whole" is a process from its start to its end: starting Python, loading and encoding;
for fastvec it is the whole command. "Steady" is encoding alone, with the model loaded and warm: for fastvec the job
from Parquet file to Arrow file, for the others encoding texts in memory. `engines/race.py` says how they are measured.

Rounds alternate, so that a slowdown of the machine affects all contestants. "% of peak" is useful FLOP/s (for the
tokens alone, without padding) of steady encoding, as a share of the rate of a square matrix product in the same dtype,
measured in every round. Energy, of steady encoding, is reported if a driver reports it. The command fails if the
contestants' vectors differ.
"""

import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.engines import race
from benchmarks.engines.contestant import FASTVEC_VARIANTS, NAMES
from benchmarks.engines.engines import BATCH_SIZES, QUANTIZED, device
from benchmarks.engines.models import MIXES, MODEL_SHAPES, read_mix, save_random_model
from benchmarks.engines.race import Measurement, Result, Runner
from benchmarks.reporting.plots import picture
from benchmarks.reporting.results import append_option, append_row, environment, write_json
from fastvec.checkpoints.checkpoint import resolve
from fastvec.settings import resolve_dtype
from fastvec.texts.from_files import tokenizer_from_files
from fastvec.texts.tokenizer import TextRecipe, TextTokenizer

DEVICE = device()
# The default number of rows takes this many seconds of encoding at half the measured matrix rate.
SECONDS = {"cpu": 8, "cuda": 12}
LEAST_BATCHES = 4  # with fewer, sorting by length would hardly reduce the padding of the engines that pad
SAMPLE = 256  # texts that the cost of a row is estimated from
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


@click.command()
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--column", default="text", show_default=True)
@click.option("--shape", type=click.Choice(list(MODEL_SHAPES)), default="25M", show_default=True)
@click.option(
    "--mix", type=click.Choice(list(MIXES)), default="short" if DEVICE == "cpu" else "wiki", show_default=True
)
@click.option("--rows", type=int, help="[default: about 8 s of encoding; on a GPU 12 s, up to the whole corpus]")
@click.option("--rounds", default=1, show_default=True)
@click.option("--dtype", "dtypes", multiple=True, help="Repeat for more. [default: what fastvec chooses here, float32]")
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Repeat for more. [default: all]")
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the model whose tokenizer to use. [default: bundled]",
)
@click.option("--limit", default=300.0, show_default=True, help="Stop a contestant's process after this many seconds.")
@click.option(
    "--seconds", default=float("inf"), help="Start no contestant after this many seconds. [default: no limit]"
)
@append_option
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
    until = time.perf_counter() + given["seconds"]
    dtypes = given["dtypes"] or tuple(dict.fromkeys([resolve_dtype(DEVICE), *["float32"] * (DEVICE == "cpu")]))
    results = [Result(name=name, dtype=dtype) for dtype in dtypes for name in given["only"] or NAMES]
    rates = {dtype: race.matrix_rate(dtype) for dtype in dtypes}
    max_length = MIXES[mix][0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_random_model(
            folder / "model", MODEL_SHAPES[shape], max_length=max_length, tokenizer=given["tokenizer"]
        )
        tokenizer = text_tokenizer(model, max_length)
        if rows is None:
            sample = counted(read_mix(corpus, column, mix, None, at_most=SAMPLE), tokenizer, shape, mix)
            texts = read_mix(corpus, column, mix, None, at_most=rows_for(sample, rates))
        else:
            texts = read_mix(corpus, column, mix, rows)
        pq.write_table(pa.table({"text": texts}), folder / "rows.parquet")
        workload = counted(texts, tokenizer, shape, mix)
        click.echo("\n".join(announcement(workload, results, rates, rounds, given["limit"])))
        runner = Runner(model=model, folder=folder, max_length=max_length, limit=given["limit"])
        for number, result, measured in race.run_rounds(runner, results, workload.flops, rounds=rounds, until=until):
            click.echo(progress(number, result, measured))
            if given["append"] is not None:
                append_row(given["append"], row_of(workload, number, result, measured))
        compare_vectors(results, runner)
    click.echo("\n".join(table(workload, results)))
    if output is not None:
        save_report(output, workload, results)
    if any(one.cosine is not None and one.cosine < least_cosine(one) for one in results):
        raise click.ClickException("the contestants' vectors differ: see the cosine column")


def rows_for(sample: Workload, rates: Mapping[str, float]) -> int:
    """Return the default number of rows of which `sample` is the beginning; `rates` has the FLOP/s of each dtype."""
    flops = SECONDS[DEVICE] * 0.5 * statistics.harmonic_mean(list(rates.values()))
    return max(LEAST_BATCHES * BATCH_SIZES[DEVICE], round(flops / sample.flops * sample.rows))


def least_cosine(result: Result) -> float:
    """Return the minimum cosine similarity of a result's vectors with the first contestant's."""
    quantized = FASTVEC_VARIANTS.get(result.name) or result.name in QUANTIZED
    return LEAST_COSINE_QUANTIZED if quantized else LEAST_COSINE


def text_tokenizer(model: Path, max_length: int) -> TextTokenizer:
    tokenizer = tokenizer_from_files(resolve(model))
    if tokenizer is None:
        raise click.UsageError(
            f"the tokenizer of {model} cannot be loaded from its files alone: choose another with --tokenizer"
        )
    return TextTokenizer(tokenizer, TextRecipe(max_length=max_length))


def counted(texts: Sequence[str], tokenizer: TextTokenizer, shape: str, mix: str) -> Workload:
    lengths = tokenizer(texts).lengths.tolist()
    size = BATCH_SIZES[DEVICE]
    padded = sum(size_of(lengths[begin : begin + size]) for begin in range(0, len(lengths), size))
    flops = MODEL_SHAPES[shape].flops(lengths)
    return Workload(shape=shape, mix=mix, rows=len(texts), tokens=sum(lengths), flops=flops, padded=padded)


def size_of(lengths: Sequence[int]) -> int:
    """Return the number of tokens in a batch that is padded to its longest text."""
    return max(lengths) * len(lengths)


def announcement(
    workload: Workload, results: Sequence[Result], rates: Mapping[str, float], rounds: int, limit: float
) -> list[str]:
    """Return what the run will do, and a lower bound of its time: every contestant at 100 % of the matrix rate."""
    saved = 1 - workload.tokens / workload.padded
    lines = [
        f"{workload.rows:,} rows, {workload.tokens:,} tokens, mix {workload.mix}; model of {workload.shape}; "
        f"{workload.flops / 1e12:.1f} TFLOP; padding in row order would be {saved:.0%}"
    ]
    total = 0.0
    for dtype, rate in rates.items():
        names = [result.name for result in results if result.dtype == dtype]
        seconds = workload.flops / rate
        total += rounds * seconds * (len(names) + sum(name in FASTVEC_VARIANTS for name in names))
        lines.append(
            f"{dtype}: encoding takes at least {seconds:.1f} s at the measured {rate / 1e12:.2f} TFLOP/s; "
            f"contestants: {'; '.join(names)}"
        )
    lines.append(
        f"{rounds} {'round' if rounds == 1 else 'rounds'}, at least {total:.0f} s if all of them run (fastvec twice: "
        f"the command, and a warm job), and the time to start each; a process is stopped after {limit:g} s"
    )
    return lines


def progress(number: int, result: Result, measured: Measurement | None) -> str:
    if measured is None:
        return f"round {number}: {result.label}: {result.missing}"
    times = f"whole {measured.whole:.1f} s, steady {measured.steady:.1f} s"
    return f"round {number}: {result.label}: {times}, {measured.share:.0%} of peak"


def row_of(workload: Workload, number: int, result: Result, measured: Measurement | None) -> dict[str, Any]:
    """Return a line of the --append file."""
    figures = dict.fromkeys(one.name for one in fields(Measurement)) if measured is None else asdict(measured)
    return {
        "benchmark": "embed",
        **{name: getattr(workload, name) for name in ("shape", "mix", "rows", "tokens")},
        "name": result.name,
        "dtype": result.dtype,
        "round": number,
        **figures,
        "missing": result.missing,
    }


def compare_vectors(results: Sequence[Result], runner: Runner) -> None:
    """Set each result's `cosine` by comparing its saved vectors with those of the first contestant that ran."""
    ran = [result for result in results if result.measurements]
    vectors = [np.load(runner.vectors(result.name, result.dtype)).astype(np.float32) for result in ran]
    # sentence-transformers normalizes in the model's dtype: in bfloat16, lengths differ from 1 by up to 0.4 %
    tiny = np.finfo(np.float32).tiny
    vectors = [one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), tiny) for one in vectors]
    for result, own in zip(ran, vectors, strict=True):
        first = vectors[0]
        rows = min(len(own), len(first))
        result.cosine = float((own[:rows] * first[:rows]).sum(axis=1).min())


def table(workload: Workload, results: Sequence[Result]) -> list[str]:
    """Return the report, one line per contestant; ratios are medians of fastvec's speed / theirs in the same dtype."""
    head = ("whole", "steady", "rows/s", "% of peak", "fastvec is, steady", "fastvec is, whole", "memory", "cosine")
    own = {result.dtype: result for result in results if result.name == "fastvec"}
    cells = {one.label: figures(workload, one, own.get(one.dtype)) for one in results if one.measurements}
    widths = [max(map(len, column)) for column in zip(head, *cells.values(), strict=True)]
    first = max(len(result.label) for result in results)
    lines = [row_text("contestant".ljust(first), head, widths) + "  energy"]
    for result in results:
        if not result.measurements:
            lines.append(f"{result.label:{first}}  {result.missing}")
            continue
        line = row_text(f"{result.label:{first}}", cells[result.label], widths)
        if joules := [one.joules for one in result.measurements if one.joules is not None]:
            line += f"  {statistics.median(joules):,.0f} J"
        if result.missing:
            line += f"  not in round {len(result.measurements) + 1}: {result.missing}"
        lines.append(line)
    return lines


def row_text(label: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([label, *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))])


def figures(workload: Workload, result: Result, own: Result | None) -> list[str]:
    """Return the cells of a result with measurements; `own` is fastvec's in the same dtype."""
    whole, steady = statistics.median(result.whole), statistics.median(result.steady)
    against = None if own is result else own
    return [
        f"{whole:.1f} s",
        f"{steady:.1f} s",
        f"{workload.rows / steady:,.0f}",
        f"{statistics.median(one.share for one in result.measurements):.0%}",
        "" if against is None else ratio(against.steady, result.steady),
        "" if against is None else ratio(against.whole, result.whole),
        f"{max(one.memory for one in result.measurements) / 2**20:,.0f} MiB",
        f"{result.cosine:.4f}",
    ]


def ratio(own: Sequence[float], other: Sequence[float]) -> str:
    """Return the median of the rounds' ratios of seconds, with the smallest and largest if there are several."""
    ratios = [theirs / ours for ours, theirs in zip(own, other, strict=False)]
    if not ratios:
        return ""
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}×{spread}"


def save_report(output: Path, workload: Workload, results: Sequence[Result]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    stem = f"embed-{workload.shape}-{workload.mix}"
    write_json(
        output / f"{stem}.json",
        {"environment": environment(), "workload": asdict(workload), "results": [asdict(one) for one in results]},
    )
    plot(workload, results, output / f"{stem}.png")


def plot(workload: Workload, results: Sequence[Result], path: Path) -> None:
    """Plot steady rows/s, with a line for each dtype at the rate that 100 % of the matrix product rate would give."""
    ran = [result for result in results if result.measurements][::-1]
    rates = [workload.rows / statistics.median(result.steady) for result in ran]
    with picture(path, figsize=(9, 1 + 0.5 * len(ran))) as (_, axes):
        axis = axes[0, 0]
        axis.barh(
            [result.label for result in ran], rates, color=["C0" if r.name in FASTVEC_VARIANTS else "C7" for r in ran]
        )
        for number, dtype in enumerate(dict.fromkeys(result.dtype for result in ran)):
            most = max(
                rate / statistics.median(one.share for one in result.measurements)
                for rate, result in zip(rates, ran, strict=True)
                if result.dtype == dtype
            )
            axis.axvline(most, color=f"C{number + 1}", linestyle="--", linewidth=0.8, label=f"matrix rate, {dtype}")
        axis.set(xlabel="rows/s, steady", title=f"{workload.shape}, mix {workload.mix}, {workload.rows:,} rows")
        axis.legend(fontsize="small")


if __name__ == "__main__":
    # a contestant is in a session of its own, so the handler's SystemExit is what stops it with this process
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    main()
