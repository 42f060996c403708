"""Embeds a million short rows, once undisturbed and once killed every few seconds, and watches memory and descriptors.

    PYTHONPATH=.:kernels python -m benchmarks.soak [--rows 1000000] [--kill-seconds 5] [--append FILE]

The model has 30,000 parameters, so that most of the work is reading, tokenizing and writing, where memory could grow.
The undisturbed run is a process of its own. Those that are killed are forked, and have less memory: what they share
with their parent is not counted. Each is sampled once a second. The exit code is 1 if the files differ, or if the
undisturbed run has more memory or descriptors in its last quarter than in its second.
"""

import filecmp
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.faulting.command import STOPS, Ended, Program, Running, Within, plainly
from benchmarks.faulting.corpora import WORDS, save_model
from benchmarks.reporting.results import append_option, append_row
from fastvec.output.writer import GROUP_SECONDS

GROWTH = 1.1  # of memory: chunks differ in size


# as in a run that is forked, no job is long enough for a CPU to be measured
COMMAND = """
from fastvec.cli.entry import main
from fastvec.encoding import chunk_encoder

chunk_encoder.is_long_job = lambda *_: False
main()
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    seconds: float
    memory: int  # bytes, not shared with the parent or with files
    descriptors: int
    threads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A run that was sampled once a second until it ended, or was killed."""

    ended: Ended
    samples: Sequence[Sample]

    def quarter(self, number: int) -> Sample:
        """Return the highest values of a quarter of the run."""
        size = max(len(self.samples) // 4, 1)
        some = self.samples[number * size :][:size] or self.samples[-1:]
        return Sample(
            seconds=some[-1].seconds,
            memory=max(sample.memory for sample in some),
            descriptors=max(sample.descriptors for sample in some),
            threads=max(sample.threads for sample in some),
        )

    def __str__(self) -> str:
        peaks = [self.quarter(number) for number in range(4)]
        memory = " ".join(f"{peak.memory / 2**20:.0f}" for peak in peaks)
        descriptors = " ".join(str(peak.descriptors) for peak in peaks)
        threads = " ".join(str(peak.threads) for peak in peaks)
        return (
            f"{self.ended.seconds:6.1f} s, exit code {self.ended.code:3}; highest in each quarter: "
            f"{memory} MiB, {descriptors} descriptors, {threads} threads"
        )


def save_rows(path: Path, rows: int) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(2, 6))) + f" {row}" for row in range(rows)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=50_000)


def sampled(pid: int, begin: float) -> Sample | None:
    """Return a sample of a process; None if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        # without the pages of mapped files, which the system takes back when it needs them
        private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))
        descriptors, threads = (len(os.listdir(f"/proc/{pid}/{name}")) for name in ("fd", "task"))
    except OSError:
        return None
    return Sample(seconds=time.monotonic() - begin, memory=private * 1024, descriptors=descriptors, threads=threads)


def in_a_new_process(program: Program) -> None:
    """Run the command without what the process that was forked has of its parent."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, "-c", COMMAND, *sys.argv[1:]], variables)


def watched(command: Sequence[str], log: Path, within: Within = plainly, *, kill_after: float | None = None) -> Watched:
    """Run the command, and kill it after so many seconds."""
    begin = time.monotonic()
    running = Running(command, log, within, commit_seconds=GROUP_SECONDS, chunk_tokens=None)
    samples: list[Sample] = []
    while (ended := running.poll()) is None:
        seconds = time.monotonic() - begin
        if kill_after is not None and seconds > kill_after:
            running.kill()
        elif seconds >= len(samples) and (sample := sampled(running.pid, begin)) is not None:
            samples.append(sample)
        time.sleep(0.05)
    return Watched(ended=ended, samples=samples)


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--kill-seconds", default=5.0, show_default=True, help="About how long a run lasts until it is killed.")
@append_option
def main(rows: int, kill_seconds: float, append: Path | None) -> None:
    """Print each run, and whether the two files are the same."""
    torch.set_num_threads(1)
    draw, failed = random.Random(0), False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_rows(folder / "rows.parquet", rows)
        own = [
            "embed",
            str(folder / "rows.parquet"),
            "--model",
            str(save_model(folder / "model")),
            "--dtype",
            "float32",
        ]
        whole = watched([*own, "-o", str(folder / "whole.arrow")], folder / "log", in_a_new_process)
        click.echo(f"undisturbed {whole}; {rows / whole.ended.seconds:,.0f} rows/s")
        second, last = whole.quarter(1), whole.quarter(3)
        failed |= last.memory > GROWTH * second.memory or last.descriptors > second.descriptors
        runs: list[Watched] = []
        while not runs or runs[-1].ended.code < 0:
            # long enough for a commit after loading, or there would be no progress
            seconds = kill_seconds * draw.uniform(0.5, 1.5) + GROUP_SECONDS
            runs.append(watched([*own, "-o", str(folder / "killed.arrow")], folder / "log", kill_after=seconds))
            click.echo(f"run {len(runs):4} {runs[-1]}")
        kills, seconds = len(runs) - 1, sum(run.ended.seconds for run in runs)
        same = runs[-1].ended.code == 0 and filecmp.cmp(folder / "whole.arrow", folder / "killed.arrow", shallow=False)
        click.echo(
            f"{kills} kills, {seconds:.0f} s, {rows / seconds:,.0f} rows/s; the files {'' if same else 'do not '}agree"
        )
        failed |= not same
        if append is not None:
            result = {"rows": rows, "kills": kills, "seconds": seconds, "same": same}
            samples = [asdict(sample) for sample in whole.samples]
            append_row(append, {"benchmark": "soak", **result, "undisturbed": samples})
    sys.exit(failed)


if __name__ == "__main__":
    main()
