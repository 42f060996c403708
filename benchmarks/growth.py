"""Measures how time and memory of `fastvec embed` grow with the number of rows, the text length and the model size.

    PYTHONPATH=.:kernels python -m benchmarks.growth corpus.parquet -o OUT [--part rows] [--part length] [--part model]

Each point is a separate process. Its seconds are those that the command reports, from the loaded model to the last row
written, without start-up. An exponent is the slope of a line fitted to the logarithms: 1 is linear growth. For the text
length it is fitted to the time per token, which only attention makes grow.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice, repeat
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.engines.models import MODEL_SHAPES, read_mix, save_random_model
from benchmarks.memory import embed
from benchmarks.reporting.plots import picture
from benchmarks.reporting.results import environment, write_json

ROWS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
ROWS_MAX_LENGTH = 16  # tokens; short, so that reading, tokenizing and writing take a noticeable share of the time
ROW_GROUP = 10_000
LENGTHS = (16, 64, 256, 1024, 4096, 8192)
TOKENS = 16_384  # in total for each length
CHARACTERS = 16  # per token: enough to reach the length, with little excess text to read
MODEL_TOKENS = 8192
UNITS = {"rows": "rows", "length": "tokens of a text", "model": "parameters that multiply"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One run: `x` in the part's unit, `seconds` as the command reports them, and peak `memory` in bytes."""

    x: float
    work: int  # rows in the part `rows`, else tokens
    seconds: float
    memory: int


@click.command()
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--column", default="text", show_default=True)
@click.option("--part", "names", multiple=True, type=click.Choice(list(UNITS)), help="Repeat for more. [default: all]")
@click.option("--most-rows", default=ROWS[-1], show_default=True)
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(MODEL_SHAPES)), help="[default: 25M, 0.1B]")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(corpus: Path, column: str, names: Sequence[str], most_rows: int, shapes: Sequence[str], output: Path) -> None:
    """Print every point and the exponents, and write JSON and a plot for each part."""
    parts: dict[str, Callable[[Path], list[Point]]] = {
        "rows": lambda folder: by_rows(corpus, column, folder, [rows for rows in ROWS if rows <= most_rows]),
        "length": lambda folder: by_length(corpus, column, folder, (shapes or ("25M",))[0]),
        "model": lambda folder: by_model(corpus, column, folder, shapes or ("25M", "0.1B")),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name in names or parts:
        with tempfile.TemporaryDirectory() as folder:
            points = parts[name](Path(folder))
        slope = exponent(name, points)
        for point in points:
            click.echo(f"{point.x:14,.0f} {UNITS[name]}: {point.seconds:8.1f} s {point.memory / 2**20:8,.0f} MiB")
        click.echo(f"{name}: exponent {slope:.2f}")
        document = {"environment": environment(), "exponent": slope, "points": [asdict(point) for point in points]}
        write_json(output / f"growth-{name}.json", document)
        plot(name, points, slope, output / f"growth-{name}.png")


def by_rows(corpus: Path, column: str, folder: Path, counts: Iterable[int]) -> list[Point]:
    """Measure each number of rows with the bundled model; the corpus's sentences are repeated."""
    texts = read_mix(corpus, column, "short", ROWS[0])
    options = ["--max-length", str(ROWS_MAX_LENGTH)]
    return measured([(count, count, numbered(cycle(texts), count)) for count in counts], folder, options)


def by_length(corpus: Path, column: str, folder: Path, shape: str) -> list[Point]:
    """Measure each text length on TOKENS tokens in total; a long text is truncated to the length."""
    model = save_random_model(folder / "model", MODEL_SHAPES[shape], max_length=LENGTHS[-1])
    long = " ".join(read_mix(corpus, column, "wiki", 100))
    points = []
    for length in LENGTHS:
        options = ["--model", str(model), "--max-length", str(length)]
        count = TOKENS // length
        points += measured(
            [(length, count * length, numbered(repeat(long[: length * CHARACTERS]), count))], folder, options
        )
    return points


def numbered(texts: Iterable[str], count: int) -> list[str]:
    """Return the first `count` texts, each with its number: equal ones would be encoded once."""
    return [f"{number} {text}" for number, text in enumerate(islice(texts, count))]


def by_model(corpus: Path, column: str, folder: Path, shapes: Sequence[str]) -> list[Point]:
    """Measure each model shape on the same texts of 128 tokens, MODEL_TOKENS in total."""
    long = " ".join(read_mix(corpus, column, "wiki", 20))
    points = []
    for shape in shapes:
        model = save_random_model(folder / shape, MODEL_SHAPES[shape], max_length=128)
        case = (
            MODEL_SHAPES[shape].parameters,
            MODEL_TOKENS,
            numbered(repeat(long[: 128 * CHARACTERS]), MODEL_TOKENS // 128),
        )
        points += measured([case], folder, ["--model", str(model)])
    return points


def measured(cases: Sequence[tuple[float, int, Sequence[str]]], folder: Path, options: Sequence[str]) -> list[Point]:
    """Run `fastvec embed` on the texts of each (x, work, texts), and return the points from its reports."""
    source, target = folder / "texts.parquet", folder / "vectors.arrow"
    points = []
    for x, work, texts in cases:
        pq.write_table(pa.table({"text": texts}), source, row_group_size=ROW_GROUP)
        report = embed([source], target, ["--overwrite", "--quiet", *options])
        points.append(Point(x=x, work=work, seconds=report["seconds"], memory=report["peak_memory_bytes"]))
    return points


def exponent(name: str, points: Sequence[Point]) -> float:
    """Return the least-squares slope of log time over log x; for the part `length`, of the time per token."""
    if len(points) < 2:
        return math.nan
    cost = [point.seconds / (point.work if name == "length" else 1) for point in points]
    return float(np.polyfit(np.log([point.x for point in points]), np.log(cost), 1)[0])


def plot(name: str, points: Sequence[Point], slope: float, path: Path) -> None:
    places = [point.x for point in points]
    with picture(path, columns=2, figsize=(10, 3.6)) as (_, axes):
        left, right = axes.flat
        left.loglog(places, [point.seconds for point in points], "o-")
        left.set(xlabel=UNITS[name], ylabel="seconds", title=f"exponent {slope:.2f}")
        right.semilogx(places, [point.memory / 2**20 for point in points], "o-", color="C1")
        right.set(xlabel=UNITS[name], ylabel="peak memory, MiB", ylim=(0, None))


if __name__ == "__main__":
    main()
