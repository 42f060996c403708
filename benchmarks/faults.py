"""Disturbs `fastvec embed` by random faults, and checks after each run that nothing is lost, doubled, moved or wrong.

    PYTHONPATH=.:kernels python -m benchmarks.faults [--minutes 5] [--faults 1000] [--seed S] [--append FILE]

A scenario is a small corpus, a kind of output and options, and a sequence of faults: SIGKILL at a random time or system
call, power cuts, full and failing disks, jumping clocks, signals, too little memory, two runs at once, damaged files,
changed inputs, NaN from the model. Then the command is run until the job is done, and what its errors say is done.

After every run: its exit code is one that the fault explains, it printed at most one line of error and no traceback,
and a file with a finished name has the bytes that it has in an undisturbed run. At the end all files have, `fastvec
verify` passes, and no temporary file is left. The first scenario that breaks a promise ends the campaign with exit code
1; its folder is kept, and the command that repeats it is printed. What happens at a random time may then not repeat.
"""

import gc
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch

from benchmarks.faulting.command import adopting_orphans
from benchmarks.faulting.faults import disturb, mount
from benchmarks.faulting.jobs import Jobs, Violation
from benchmarks.faulting.trial import NONE, Tally, Trial
from benchmarks.reporting.results import append_option, append_row

MOST_FAULTS = 7  # of a scenario
SHOW_SECONDS = 10.0


def run_scenario(jobs: Jobs, seed: int, number: int, tally: Tally) -> None:
    """Run a scenario. Raises Violation, which says what happened until then."""
    draw = random.Random(f"{seed} scenario {number}")
    trial = Trial(jobs.draw(draw), draw, tally)
    try:
        for _ in range(draw.randint(1, MOST_FAULTS)):
            disturb(trial)
            if (trial.job.output / trial.job.final).exists() and draw.random() < 0.7:
                break
        trial.finish()
    except (Violation, TimeoutError) as error:
        raise Violation("\n".join([*trial.history, "", str(error)])) from None
    tally.scenarios += 1
    trial.remove()


def table(tally: Tally) -> str:
    """Return how the runs with each fault ended."""
    lines = [f"{'fault':28} {'runs':>6}  exit codes"]
    for fault, runs in sorted(tally.runs.items(), key=lambda item: (item[0] == NONE, item[0])):
        codes = ", ".join(f"{code}: {count:,}" for code, count in sorted(tally.codes[fault].items()))
        lines.append(f"{fault:28} {runs:6,}  {codes}")
    return "\n".join(lines)


@contextmanager
def working_folder() -> Iterator[Path]:
    """Yield a folder in which `out` is a file system of its own, if possible; it is kept if the block raises."""
    torch.set_num_threads(1)  # threads do not survive a fork
    folder = Path(tempfile.mkdtemp(prefix="fastvec-faults-"))
    (folder / "out").mkdir()
    mounted = mount(folder / "out")
    if not mounted:
        click.echo("without the right to mount a small file system, full disks are injected errors alone")
    gc.freeze()  # so that a run does not copy what it does not change
    try:
        with adopting_orphans():
            yield folder
    finally:
        gc.unfreeze()  # a library that is not freed at the end complains
    if mounted:
        subprocess.run(["umount", "--lazy", folder / "out"], check=True)
    shutil.rmtree(folder)


@click.command()
@click.option("--minutes", type=float, default=5.0, show_default=True)
@click.option("--faults", type=int, help="Stop after so many. [default: when the time is over]")
@click.option("--seed", type=int, help="[default: a random one, which is printed]")
@click.option("--scenario", type=int, help="Only this one of the seed.")
@click.option("--verbose", is_flag=True, help="Print the number of each scenario.")
@append_option
def main(
    minutes: float, faults: int | None, seed: int | None, scenario: int | None, verbose: bool, append: Path | None
) -> None:
    """Run scenarios until the time is over, or one breaks a promise."""
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    click.echo(f"seed {seed}")
    tally, begin, shown, number = Tally(), time.monotonic(), time.monotonic(), scenario or 0
    failure = None
    with working_folder() as folder:
        jobs = Jobs(folder, seed)
        while failure is None:
            if verbose:
                click.echo(f"--seed {seed} --scenario {number}")
            try:
                run_scenario(jobs, seed, number, tally)
            except Violation as error:
                failure = str(error)
            seconds = time.monotonic() - begin
            if time.monotonic() - shown > SHOW_SECONDS:
                click.echo(f"{tally.faults:,} faults in {tally.scenarios:,} scenarios, {seconds:.0f} s")
                shown = time.monotonic()
            if scenario is not None or seconds > 60 * minutes or tally.faults >= (faults or 1 << 60):
                break
            number += failure is None
        _report(tally, seed, seconds, append, failed=failure is not None)
        if failure is not None:
            repeat = shlex.join(["python", "-m", "benchmarks.faults", "--seed", str(seed), "--scenario", str(number)])
            click.echo(f"\n{failure}\n\nkept: {folder}\nrepeat: {repeat}")
            sys.exit(1)


def _report(tally: Tally, seed: int, seconds: float, append: Path | None, *, failed: bool) -> None:
    click.echo(table(tally))
    runs = sum(tally.runs.values())
    click.echo(
        f"{tally.faults:,} faults in {tally.scenarios:,} scenarios and {runs:,} runs, {seconds:.0f} s, seed {seed}"
    )
    if not failed:
        click.echo("rows lost, doubled, reordered or wrong: 0; tracebacks: 0")
    if append is not None:
        row = {"seed": seed, "scenarios": tally.scenarios, "runs": dict(tally.runs), "failed": failed}
        append_row(append, {"benchmark": "faults", **row})


if __name__ == "__main__":
    main()
