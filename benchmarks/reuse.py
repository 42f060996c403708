"""Times `fastvec embed --reuse` over a corpus of which most texts are in an earlier output, against embedding it all.

    PYTHONPATH=.:kernels python -m benchmarks.reuse corpus.parquet [--column text] [--model MODEL] [--rows 100000]

The corpus's texts are repeated with a number before each, so that all differ. The earlier output has `--share` of them,
spread over the corpus. Both runs are whole commands, from starting Python to the finished file; both write hashes.
"""

import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.engines.models import read_mix


@click.command()
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--column", default="text", show_default=True)
@click.option("--model", help="[default: bundled]")
@click.option("--mix", default="short", show_default=True, help="The texts: short (sentences) or wiki (articles).")
@click.option("--rows", default=100_000, show_default=True)
@click.option("--share", default=0.9, show_default=True, help="The share of texts that the earlier output has.")
def main(corpus: Path, column: str, model: str | None, mix: str, rows: int, share: float) -> None:
    """Print the seconds of both runs, and their ratio."""
    texts = read_mix(corpus, column, mix, None, at_most=rows)
    texts = [f"{number} {text}" for number, text in enumerate(islice(cycle(texts), rows))]
    known = [text for number, text in enumerate(texts) if number * share % 1 < share]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, some in {"old": known, "new": texts}.items():
            pq.write_table(pa.table({"text": some}), folder / f"{file}.parquet")
        options = ["--quiet", *(["--model", model] if model else [])]
        timed([folder / "old.parquet", "-o", folder / "old.arrow", "--hash", *options])
        whole = timed([folder / "new.parquet", "-o", folder / "whole.arrow", "--hash", *options])
        reused = timed([folder / "new.parquet", "-o", folder / "new.arrow", "--reuse", folder / "old.arrow", *options])
    click.echo(f"{len(texts):,} rows in {whole:.1f} s; with {len(known):,} of them reused in {reused:.1f} s")
    click.echo(f"{reused / whole:.1%} of the time")


def timed(arguments: list[object]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fastvec", "embed", *map(str, arguments)], check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
