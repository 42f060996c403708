"""Measures everything that needs a GPU, in two calls of 430 and 300 seconds.

    PYTHONPATH=.:kernels python -m benchmarks.gpu OUT --call 1 --corpus rows.parquet [--only STAGE] [--from STAGE]

Call 1 decides whether the kernels are right, then measures the forward pass, `fastvec embed` and attention. Call 2 runs
the tests, the rest and, last, what may hang. Each command is a process group, each stage has a time limit, to which is
added what earlier stages left, and a stage that fails does not stop the others. An op that the check in stage "right"
finds wrong runs on PyTorch's operations in later stages, also of a later call with the same OUT or with `--known OUT`.

OUT gets results.jsonl, to which every result is appended when it is known, summary.md, which is rewritten after every
stage and has what each stage printed, and a trace. The exit code is 0 if every stage passed. `--smoke` runs the stages
of both calls in small sizes, also without a GPU; tuning needs one.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.reporting.results import append_row, environment
from benchmarks.visit import Command, Stage, stages

ON_GPU = torch.cuda.is_available()
SECONDS = {1: 430.0, 2: 300.0}  # of each call: together 12 minutes, of 15 with the machine's start
GRACE_SECONDS = 5
PRINTED_LINES = 150  # of each command in the summary


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a stage ended. `status` is passed, or says what failed; `torch_ops` are the ops that its failures replace."""

    stage: str
    status: str
    seconds: float
    printed: str
    torch_ops: frozenset[str] = frozenset()

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def __str__(self) -> str:
        return f"{self.stage}: {self.status}, {self.seconds:.0f} s"


def run_stage(stage: Stage, seconds: float, folder: Path, variables: dict[str, str]) -> Outcome:
    """Run the commands of a stage, one after another or side by side, for at most `seconds` together."""
    begin = time.monotonic()
    waiting = list(enumerate(stage.commands))
    running: dict[int, subprocess.Popen[bytes]] = {}
    statuses: dict[int, str] = {}
    logs = [folder / f"{stage.name}-{number}.txt" for number in range(len(stage.commands))]
    while waiting or running:
        while waiting and (stage.side_by_side or not running):
            number, command = waiting.pop(0)
            running[number] = started(command, logs[number], variables)
        for number in [number for number, process in running.items() if process.poll() is not None]:
            statuses[number] = f"exit code {running.pop(number).returncode}"
        if time.monotonic() - begin > seconds:
            stop(running.values())
            statuses |= dict.fromkeys(running, "stopped by the time limit")
            statuses |= {number: "not started: no time left" for number, _ in waiting}
            break
        time.sleep(0.05)
    failed = {number: status for number, status in statuses.items() if status != "exit code 0"}
    status = "; ".join(f"{stage.commands[number]} {status}" for number, status in sorted(failed.items()))
    return Outcome(
        stage=stage.name,
        status=f"FAILED: {status}" if failed else "passed",
        seconds=time.monotonic() - begin,
        printed="\n".join(printed(command, log) for command, log in zip(stage.commands, logs, strict=True)),
        torch_ops=frozenset(
            op
            for number, status in failed.items()
            if (op := stage.commands[number].decides) is not None and is_wrong(status, logs[number])
        ),
    )


def is_wrong(status: str, log: Path) -> bool:
    """Return whether a check that failed found its kernel wrong: by a row, a signal or a hang before the first row.

    A program that ended for another reason, such as a missing module, or that was too slow, says nothing about it.
    """
    rows = log.read_text(errors="replace") if log.exists() else ""
    hangs = status.startswith("stopped") and re.search(r" ok\b", rows) is None
    return "FAILED" in rows or status.startswith("exit code -") or hangs


def started(command: Command, log: Path, variables: dict[str, str]) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        try:
            return subprocess.Popen(
                command.line(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **variables},
            )
        except FileNotFoundError as error:
            output.write(f"{error.filename} is not installed\n".encode())
            return subprocess.Popen(["false"])


def stop(processes: Iterable["subprocess.Popen[bytes]"]) -> None:
    """Interrupt processes, so that pytest can report what failed so far, then kill them and their children."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    until = time.monotonic() + GRACE_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # the driver may hold a process that a kernel hangs in
            process.wait(GRACE_SECONDS)


def printed(command: Command, log: Path) -> str:
    """Return the last lines that a command printed, as a section of the summary."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else ["not started"]
    cut = [f"({len(lines) - PRINTED_LINES} lines left out)"] if len(lines) > PRINTED_LINES else []
    return "\n".join([f"`{command}`", "", "```", *cut, *lines[-PRINTED_LINES:], "```", ""])


def summary(outcomes: Sequence[Outcome], torch_ops: Iterable[str]) -> str:
    """Return a Markdown page: where it ran, how each stage ended, what each printed."""
    where = ", ".join(f"{name} {value}" for name, value in environment().items() if value)
    lines = ["# Measurements on a GPU" if ON_GPU else "# Smoke test without a GPU: no figure here means anything", ""]
    lines += [where, "", *(f"- {outcome}" for outcome in outcomes), ""]
    if torch_ops:
        lines += [f"On PyTorch's operations, because their check failed: {', '.join(sorted(torch_ops))}", ""]
    for outcome in outcomes:
        lines += [f"## {outcome.stage}", "", outcome.printed]
    return "\n".join(lines)


def stages_before(*folders: Path | None) -> list[dict[str, Any]]:
    """Return the rows of the stages of earlier calls with results in `folders`."""
    files = [folder / "results.jsonl" for folder in folders if folder is not None]
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    return [row for row in map(json.loads, lines) if row["benchmark"] == "stage"]


def chosen(found: list[Stage], call: int, only: Sequence[str], first: str | None, known: Path | None) -> list[Stage]:
    """Return the stages of a call, or of both if stages are named. Raises click.UsageError for an unknown name."""
    names = [stage.name for stage in found]
    if unknown := sorted({*only, *([first] if first else [])} - set(names)):
        raise click.UsageError(f"there is no stage {', '.join(unknown)}: choose from {', '.join(names)}")
    before = {row["stage"] for row in stages_before(known) if row["status"] == "passed"}
    begin = 0 if first is None else names.index(first)
    own = [stage for stage in found[begin:] if (stage.name in only if only else first or stage.call == call)]
    return [stage for stage in own if stage.name not in before]


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--call", type=click.IntRange(1, 2), default=1, show_default=True)
@click.option(
    "--corpus",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path("tests/data/articles.parquet"),
    show_default=True,
    help="Parquet file with a column `text`; 12 s of a 0.6B model take about 15 MB.",
)
@click.option("--only", multiple=True, help="Only this stage, of either call; repeat for more.")
@click.option("--from", "first", help="This stage and all later ones.")
@click.option(
    "--known",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="OUT of an earlier call: leave out what passed there.",
)
@click.option("--seconds", type=float, help="Time limit for all stages together. [default: 430, in call 2 300]")
@click.option("--smoke", is_flag=True, help="Run every stage of both calls in small sizes.")
def main(
    out: Path, call: int, corpus: Path, only: tuple[str, ...], first: str | None, known: Path | None, **run: float
) -> None:
    """Run the stages of one call."""
    if not ON_GPU and not run["smoke"]:
        raise click.UsageError("torch finds no GPU: run this on a machine with one, or with --smoke to test the stages")
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + (run["seconds"] or (3600 if run["smoke"] else SECONDS[call]))
    results = out / "results.jsonl"
    append_row(results, {"benchmark": "environment", **environment()})
    variables = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if not ON_GPU:  # one thread: on a busy machine, several wait for each other at every operation
        variables |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    outcomes: list[Outcome] = []
    torch_ops = {op for row in stages_before(out, known) for op in row["torch_ops"]}
    with tempfile.TemporaryDirectory() as name:
        found = stages(results, Path(name), corpus, smoke=bool(run["smoke"]))
        first = found[0].name if run["smoke"] and not first and not only else first
        left_to_run = chosen(found, call, only, first, known)
        for number, stage in enumerate(left_to_run):
            if torch_ops:
                variables["FASTVEC_TORCH_OPS"] = ",".join(sorted(torch_ops))
            left = deadline - time.monotonic()
            if left > 0:
                later = sum(other.seconds for other in left_to_run[number + 1 :])
                seconds = min(max(stage.seconds, left - later), left)
                outcomes.append(run_stage(stage, seconds, Path(name), variables))
            else:
                outcomes.append(Outcome(stage=stage.name, status="FAILED: no time left", seconds=0, printed=""))
            torch_ops |= outcomes[-1].torch_ops
            row = {"stage": stage.name, "status": outcomes[-1].status, "seconds": outcomes[-1].seconds}
            append_row(results, {"benchmark": "stage", **row, "torch_ops": sorted(outcomes[-1].torch_ops)})
            (out / "summary.md").write_text(summary(outcomes, torch_ops))
            print(outcomes[-1], flush=True)
    sys.exit(any(not outcome.passed for outcome in outcomes))


if __name__ == "__main__":
    main()
