"""Tests whether memory grows with the corpus: embeds a corpus and ten copies of it, and compares peak resident memory.

    python -m benchmarks.memory CORPUS --model MODEL [--column text] [--max-length 32] [--times 10]

Each run is a separate process. Texts are truncated at `--max-length` tokens, so that most time is spent on reading,
tokenizing and writing, where memory could grow; the model's memory does not depend on the number of rows. The exit code
is 1 if the peak grows by more than 10 %.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", required=True)
@click.option("--column", default="text", show_default=True)
@click.option("--max-length", default=32, show_default=True)
@click.option("--times", default=10, show_default=True)
def main(corpus: Path, model: str, column: str, max_length: int, times: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copies = [folder / f"copy-{number:03}{corpus.suffix}" for number in range(times)]
        for copy in copies:
            shutil.copyfile(corpus, copy)
        options = ["--model", model, "--column", column, "--max-length", str(max_length)]
        runs = [embed([corpus], folder / "one.arrow", options), embed(copies, folder / "many.arrow", options)]
    for run in runs:
        print(
            f"{run['rows']:>10,} rows  {run['peak_memory_bytes'] / 2**20:8.0f} MiB peak  {run['seconds']:7.1f} s  "
            f"{run['rows_per_second']:8,.0f} rows/s"
        )
    ratio = runs[1]["peak_memory_bytes"] / runs[0]["peak_memory_bytes"]
    print(f"{times} times the rows, {ratio:.3f} times the memory")
    sys.exit(0 if ratio <= 1.1 else 1)


def embed(inputs: list[Path], output: Path, options: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "fastvec", "embed", *map(str, inputs), "-o", str(output), *options, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


if __name__ == "__main__":
    main()
