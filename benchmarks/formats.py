"""Measures how fast a corpus is opened and cut into chunks, in each format and compression.

    PYTHONPATH=.:kernels python -m benchmarks.formats CORPUS.parquet [--column text] [--rows 120000] [--rounds 3]

The texts are those of the corpus's column, with a number before each and without line ends, repeated up to `--rows`.
A rate is megabytes of text by the median of the rounds, of which each opens the file and reads it to its end.
"""

import csv
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from benchmarks.engines.models import texts_of
from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import ChunkLimits

LIMITS = ChunkLimits(rows=4096, bytes=1 << 24)


@click.command()
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--column", default="text", show_default=True)
@click.option("--rows", default=120_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(corpus: Path, column: str, rows: int, rounds: int) -> None:
    """Print the rate of each format."""
    source = list(islice(texts_of(corpus, column), rows))
    texts = [f"{number} {' '.join(text.split())}" for number, text in enumerate(islice(cycle(source), rows))]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    click.echo(f"{rows:,} texts, {megabytes:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        for path in written(texts, Path(folder)):
            seconds = statistics.median(timed(path) for _ in range(rounds))
            click.echo(f"{path.name.removeprefix('rows'):12} {megabytes / seconds:8,.0f} MB/s")


def written(texts: Sequence[str], folder: Path) -> list[Path]:
    """Write the texts in each format; returns the files."""
    table = pa.table({"text": texts})
    pq.write_table(table, folder / "rows.parquet")
    with ipc.new_file(folder / "rows.arrow", table.schema) as file:
        file.write_table(table, 4096)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "rows.txt").write_text("".join(f"{text}\n" for text in texts))
    for name, delimiter in {"rows.csv": ",", "rows.tsv": "\t"}.items():
        with (folder / name).open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([["text", "end"], *([text, "x"] for text in texts)])
    for plain in ("rows.jsonl", "rows.csv"):
        content = (folder / plain).read_bytes()
        (folder / f"{plain}.gz").write_bytes(gzip.compress(content, 6))
        (folder / f"{plain}.zst").write_bytes(pa.compress(content, codec="zstd"))
    return sorted(folder.iterdir())


def timed(path: Path) -> float:
    started = time.perf_counter()
    for _ in open_corpus([path], column="text").chunks(LIMITS):
        pass
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
