"""Measures jobs of many workers and of many shards without GPUs, and computes what a large job takes with them.

    PYTHONPATH=.:kernels python -m benchmarks.scale corpus.parquet [--part processes] [--part receipts] [--part cost]

- `processes`: jobs of several processes whose encoder only waits as long as a GPU would compute. All else is real: they
  read, tokenize, write, publish shards and receipts. A job has as much work as its workers do in `--seconds`; so the
  rate of n workers should be n times that of one. It is also extrapolated to a job of ten minutes. With `--engine ray`
  the workers are actors of a Ray cluster, which this machine is if RAY_ADDRESS is not set.
- `receipts`: planning, receipts, progress and manifest of a job of `--shards` shards, of which nothing is embedded.
- `cost`: what a billion texts take with a model of 0.6 and of 8 billion parameters. The rate of a GPU is computed, see
  `benchmarks.scaling.cost`; what a text takes the CPU is measured with an encoder that does not wait.

The default of `--model` is a rate for which the CPUs of a small machine suffice. Receipts are small files: a temporary
folder in memory (`TMPDIR=/dev/shm`) shows what the code takes, one on a disk what the disk takes.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import click

from benchmarks.engines.models import MODEL_SHAPES
from benchmarks.reporting.results import environment, write_json
from benchmarks.scaling import bookkeeping
from benchmarks.scaling.cost import cost_of, token_seconds
from benchmarks.scaling.processes import TEXT_TOKENS, Timing, measured, texts_of_length, workers_of

PARTS = ("processes", "receipts", "cost")
TEN_MINUTES = 600.0
COST_ROWS = 30_000  # of a job that shows what a text takes the CPU
AT_ONCE = 1e12  # tokens a second: an encoder that does not wait


@click.command()
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--column", default="text", show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Repeat for more. [default: all]")
@click.option("--engine", type=click.Choice(["processes", "ray"]), default="processes", show_default=True)
@click.option("--model", type=click.Choice(["0.6B", "8B"]), default="8B", show_default=True)
@click.option("--workers", multiple=True, type=click.IntRange(1), default=(1, 2, 8), show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="Of work for each worker.")
@click.option("--shards", default=1_000_000, show_default=True)
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path))
def main(corpus: Path, column: str, parts: Sequence[str], output: Path | None, **options: Any) -> None:
    """Print every result, and write those of each part as JSON."""
    job = [options[name] for name in ("engine", "model", "workers", "seconds")]
    results = {
        "processes": lambda: by_workers(corpus, column, *job),
        "receipts": lambda: of_shards(options["shards"]),
        "cost": lambda: costs(corpus, column),
    }
    for part in parts or PARTS:
        rows = list(results[part]())
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            write_json(output / f"scale-{part}.json", {"environment": environment(), "rows": rows})


def by_workers(
    corpus: Path, column: str, engine: str, model: str, workers: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """Run a job for each number of workers; their rates are compared with that of the first."""
    shape = MODEL_SHAPES[model]
    rate = 1 / token_seconds(shape, TEXT_TOKENS)
    click.echo(f"{model}: a device computes {rate:,.0f} tokens/s")
    first: Timing | None = None
    for count in workers:
        rows = max(int(count * seconds * rate / TEXT_TOKENS), count)
        texts = texts_of_length(corpus, column)
        found = measured(texts, workers_of(engine, count), rows=rows, workers=count, shape=shape, rate=rate)
        first = first or found
        ratios = {
            "whole": found.rate / first.rate,
            "between the first and the last chunk": found.steady_rate / first.steady_rate,
            "in ten minutes": found.rate_of_job(TEN_MINUTES) / first.rate_of_job(TEN_MINUTES),
        }
        click.echo(found)
        click.echo("    " + ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items()))
        yield {**asdict(found), "rate": found.rate, "ratios": ratios}


def of_shards(shards: int) -> Iterator[dict[str, Any]]:
    """Run the bookkeeping of a job of so many shards."""
    with tempfile.TemporaryDirectory() as folder:
        for stage in bookkeeping.stages(Path(folder), shards):
            click.echo(stage)
            yield asdict(stage)


def costs(corpus: Path, column: str) -> Iterator[dict[str, Any]]:
    """Compute the cost with each model."""
    sample = list(islice(texts_of_length(corpus, column), COST_ROWS))
    text_bytes = sum(len(text.encode()) for text in sample) / len(sample)
    for model in ("0.6B", "8B"):
        shape = MODEL_SHAPES[model]
        cpu = measured(iter(sample), workers_of("processes", 1), rows=len(sample), workers=1, shape=shape, rate=AT_ONCE)
        cost = cost_of(model, cpu, text_bytes)
        click.echo(cost)
        yield asdict(cost)


if __name__ == "__main__":
    main()
