"""Kills `fastvec embed` in the middle, resumes it, and compares the file with that of an uninterrupted run.

    PYTHONPATH=.:kernels python -m benchmarks.recovery corpus.parquet --model MODEL [--rows 20000] [--append FILE]

On a CPU, every run computes in float32 and by the defaults: what two runs would measure to be fastest may differ, and
round differently. On a GPU it also runs with a token budget for which there is no memory: the run must halve it and
finish. The exit code is 1 if a file differs, or a run does not end as it should.
"""

import filecmp
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.engines.models import texts_of
from benchmarks.reporting.results import append_option, append_row

ON_GPU = torch.cuda.is_available()
TOO_MANY_TOKENS = 1 << 26  # of a batch: 2^26 tokens of 1,024 dimensions take 128 GiB for one activation in bfloat16
# Every chunk is made durable at once, instead of every 2 s, and on a CPU chunks are small: a run of few seconds too is
# killed between two commits. No job is long enough for a CPU to be measured.
COMMAND = """
from fastvec.cli.entry import main
from fastvec.encoding import chunk_encoder
from fastvec.output import writer
from fastvec.texts import batching

batching.CHUNK_TOKENS["cpu"] = (2048, 2048)
writer.GROUP_SECONDS = 0
chunk_encoder.is_long_job = lambda *_: False
main()
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One check. `status` is correct, or starts with FAILED."""

    check: str
    status: str
    seconds: float

    @property
    def failed(self) -> bool:
        return self.status.startswith("FAILED")

    def __str__(self) -> str:
        return f"{self.check:44} {self.status} ({self.seconds:.1f} s)"


def embed(source: Path, output: Path, model: str, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", COMMAND, "embed", str(source), "-o", str(output), "--model", model, *options]
    if not ON_GPU:
        command += ["--dtype", "float32"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def failure_of(process: "subprocess.Popen[str]", expected: str = "") -> str | None:
    """Wait for a process; return its last line if it failed or did not print what is expected."""
    text, _ = process.communicate()
    return None if process.returncode == 0 and expected in text else (text.strip().splitlines() or ["no output"])[-1]


def killed(source: Path, output: Path, model: str) -> str | None:
    """Kill a run once its journal lists a chunk, on the second line; return what went wrong, or None."""
    process, journal = embed(source, output, model), output.with_name(output.name + ".journal")
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        time.sleep(0.01)
    if process.poll() is not None:
        return failure_of(process) or "it ended before it could be killed: more --rows are needed"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return None


def checks(source: Path, model: str, folder: Path) -> Iterator[tuple[str, str | None]]:
    """Yield the name of each check, and its failure or None."""
    whole, resumed = folder / "whole.arrow", folder / "resumed.arrow"
    yield "an uninterrupted run", failure_of(embed(source, whole, model))
    yield "killed after its first chunk", killed(source, resumed, model)
    yield "resumed", failure_of(embed(source, resumed, model), f"resuming {resumed} at row ")
    same = whole.exists() and resumed.exists() and filecmp.cmp(whole, resumed, shallow=False)
    yield "the same bytes as without the kill", None if same else "the files differ"
    if ON_GPU:
        crowded = embed(source, folder / "crowded.arrow", model, "--batch-tokens", str(TOO_MANY_TOKENS))
        yield "more tokens than memory: halves the batch", failure_of(crowded, "out of memory: continuing")


@click.command()
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--column", default="text", show_default=True)
@click.option("--model", required=True)
@click.option("--rows", type=int, help="[default: 1,000; on a GPU all]")
@append_option
def main(corpus: Path, column: str, model: str, rows: int | None, append: Path | None) -> None:
    """Print how each check ended."""
    failed = False
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "rows.parquet")
        limit = rows or (None if ON_GPU else 1000)
        pq.write_table(pa.table({"text": list(islice(texts_of(corpus, column), limit))}), source)
        begin = time.monotonic()
        for check, failure in checks(source, model, Path(name)):
            status = "correct" if failure is None else f"FAILED: {failure}"
            outcome = Outcome(check=check, status=status, seconds=time.monotonic() - begin)
            print(outcome, flush=True)
            failed = failed or outcome.failed
            if append is not None:
                append_row(append, {"benchmark": "recovery", **asdict(outcome)})
            begin = time.monotonic()
    sys.exit(failed)


if __name__ == "__main__":
    main()
