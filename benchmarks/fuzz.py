"""Fuzzes the reader of input files: changes small files at random, and keeps the changes that reach new code.

    PYTHONPATH=.:kernels python -m benchmarks.fuzz --minutes 15 [--seed 0] [--findings FOLDER]

Each file is read as a job reads it, in a process with limits (see `benchmarks.fuzzing.trial`). Guidance is by the
lines of fastvec.corpus that ran, and by the messages of pyarrow, whose own code is not traced: a file with a new line
or a new message is changed further. A finding is a crash, an exception that is no one-line error, more memory or time
than allowed; each kind is saved once to `--findings`.
"""

import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import click

from benchmarks.fuzzing.mutations import mutated
from benchmarks.fuzzing.seeds import seeds
from benchmarks.fuzzing.trial import Allowance, Outcome, trial

LARGEST = 1 << 16  # bytes of a file that is changed further
COLUMN = "text"


class Fuzzer:
    """The files found so far, and what they reached."""

    def __init__(self, folder: Path, seed: int, allowance: Allowance) -> None:
        self.folder, self.random, self.allowance = folder, Random(seed), allowance
        self.corpus = list(seeds().items())
        self.reached: set[str] = set()
        self.found: set[str] = set()
        self.counts: Counter[str] = Counter()

    def run(self, seconds: float) -> Iterator[tuple[str, bytes, Outcome]]:
        """Yield the name and the content of each file with a finding of a new kind."""
        end = time.monotonic() + seconds
        for name, content in list(self.corpus):
            yield from self._tried(name, content)
        while time.monotonic() < end:
            # half of the time one of the files found last, which are the rarest
            recent = self.corpus[-50:] if self.random.random() < 0.5 else self.corpus
            name, content = self.random.choice(recent)
            changed = mutated(content, [other for _, other in self.corpus], self.random)
            yield from self._tried(name, changed)

    def _tried(self, name: str, content: bytes) -> Iterator[tuple[str, bytes, Outcome]]:
        path = self.folder / name
        path.write_bytes(content)
        outcome = trial(path, column=COLUMN, keep=None, allowance=self.allowance, traced=True)
        self.counts[outcome.status] += 1
        kind = kind_of(outcome, path)
        new = {*outcome.reached, kind} - self.reached
        if new and len(content) <= LARGEST:
            self.reached |= new
            self.corpus.append((name, content))
        if not outcome.sound and kind not in self.found:
            self.found.add(kind)
            yield name, content, outcome


def kind_of(outcome: Outcome, path: Path) -> str:
    """Return the outcome without what differs between two files: the path, numbers and names."""
    reason = re.sub(r"'[^']*'|\"[^\"]*\"|-?\d+", "…", outcome.reason.replace(str(path), ""))
    return f"{outcome.status}: {re.sub('Its columns: .*', '', reason)[:80]}"


@click.command()
@click.option("--minutes", default=15.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--memory", default=1024, show_default=True, help="MiB that reading a file may take.")
@click.option("--findings", type=click.Path(file_okay=False, path_type=Path), help="Where to save them.")
def main(minutes: float, seed: int, memory: int, findings: Path | None) -> None:
    """Print each finding, and at the end executions and coverage; the exit code is 1 if there is a finding."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder), seed, Allowance(memory=memory << 20, seconds=60))
        for name, content, outcome in fuzzer.run(60 * minutes):
            click.echo(f"FINDING {name}, {len(content)} bytes: {outcome.status}: {outcome.reason}")
            if findings is not None:
                findings.mkdir(parents=True, exist_ok=True)
                (findings / f"{len(fuzzer.found):03}-{name}").write_bytes(content)
    click.echo(summary(fuzzer, time.monotonic() - started))
    sys.exit(bool(fuzzer.found))


def summary(fuzzer: Fuzzer, seconds: float) -> str:
    lines = sum(":" in one and one.split(":")[0].endswith(".py") for one in fuzzer.reached)
    return (
        f"{sum(fuzzer.counts.values()):,} executions in {seconds:,.0f} s, {lines:,} lines of fastvec.corpus and "
        f"{len(fuzzer.reached) - lines:,} kinds of outcome reached by {len(fuzzer.corpus):,} files; "
        + ", ".join(f"{count:,} {status}" for status, count in sorted(fuzzer.counts.items()))
        + f"; {len(fuzzer.found)} findings"
    )


if __name__ == "__main__":
    main()
