"""Reads every file of a folder as a corpus, each in a process with limits, and prints how that ended.

    PYTHONPATH=.:kernels python -m benchmarks.hostile_files FOLDER [--memory 1024] [--seconds 60] [--json]

For a checkout of apache/parquet-testing or apache/arrow-testing, or of any other damaged and unusual files. A file is
read with the column that fastvec chooses, and once for each column that can be text, with all other columns kept. Each
must be `read`, as many rows as pyarrow counts, or `refused` in one line that names the file. The exit code is 1 if
anything else happens: a crash, an exception, more memory or time than allowed.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.fuzzing.trial import Allowance, Outcome, text_columns, trial

MOST_COLUMNS = 32  # of a file


def sweep(path: Path, allowance: Allowance) -> Iterator[tuple[str | None, Outcome]]:
    """Yield the outcome of reading `path`: with the chosen column, which is None here, and with each text column."""
    yield None, trial(path, allowance=allowance)
    for column in text_columns(path, allowance).columns[:MOST_COLUMNS]:
        yield column, trial(path, column=column, keep=None, allowance=allowance)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--memory", default=1024, show_default=True, help="MiB that reading a file may take.")
@click.option("--seconds", default=60, show_default=True, help="What reading a file may take.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each file.")
def main(folder: Path, memory: int, seconds: int, as_json: bool) -> None:
    """Print a line for each file and column."""
    allowance = Allowance(memory=memory << 20, seconds=seconds)
    counts: Counter[str] = Counter()
    sound = True
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        for column, outcome in sweep(path, allowance):
            name = path.relative_to(folder)
            counts[outcome.status] += 1
            sound = sound and outcome.sound
            if as_json:
                click.echo(json.dumps({"file": str(name), "column": column, **asdict(outcome)}))
            else:
                click.echo(
                    f"{outcome.status:9} {outcome.rows:9,} rows {outcome.seconds:6.2f} s {outcome.peak >> 20:6,} MiB  "
                    f"{name}{'' if column is None else f' {column!r}'}  {outcome.reason}"
                )
    if not as_json:
        click.echo(", ".join(f"{count:,} {status}" for status, count in sorted(counts.items())))
    sys.exit(not sound)


if __name__ == "__main__":
    main()
