"""A job that is disturbed again and again, and then run until it is done; after each run the promises are checked."""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from benchmarks.faulting.command import Ended, Running, Within, end_orphans, plainly
from benchmarks.faulting.jobs import Job, Violation, contents, require_end
from benchmarks.faulting.machine import Machine
from benchmarks.faulting.remedies import follow, follow_verify
from fastvec.shards.record import RECORD

NONE = "none"  # of runs that nothing disturbs
ROUNDS = 10  # of following remedies
COMMIT_SECONDS = (0, 0, 0.02, 2)


@dataclass
class Tally:
    """What happened so far: in how many runs there was a fault, by its name, and how they ended."""

    runs: Counter[str] = field(default_factory=Counter)
    codes: dict[str, Counter[int]] = field(default_factory=dict)
    scenarios: int = 0

    @property
    def faults(self) -> int:
        return sum(self.runs.values()) - self.runs[NONE]

    def count(self, fault: str, code: int) -> None:
        self.runs[fault] += 1
        self.codes.setdefault(fault, Counter())[code] += 1


class Trial:
    """A job in progress. `draw` decides what is random.

    Attributes:
        history: What was done, for people.
        tainted: The finished files that a fault has damaged and no run has made anew.
        damaged: Whether the next runs may ask for something to be done.
    """

    def __init__(self, job: Job, draw: random.Random, tally: Tally) -> None:
        self.job, self.draw, self.tally = job, draw, tally
        self.expected = job.undisturbed
        self.history: list[str] = []
        self.tainted: set[str] = set()
        self.damaged = False
        self.success = {0, self.expected.code}
        self.machine = Machine(job.output, job.output.with_name("attic"))
        self.machine_knows = True  # whether it has seen all changes of the folder
        self._log = job.folder / "log"

    def remove(self) -> None:
        """Delete the output."""
        end_orphans(kill=True)
        for name in ("disk", "attic"):
            shutil.rmtree(self.job.output.with_name(name))

    def moment(self) -> float:
        """Return how many seconds after its start a run is disturbed."""
        return self.draw.random() * self.expected.seconds

    def command(self) -> tuple[str, ...]:
        quiet = ("--quiet",) if self.draw.random() < 0.5 else ()
        return (*self.draw.choice(self.job.commands), *quiet)

    def start(self, command: tuple[str, ...], within: Within = plainly, log: str = "log") -> Running:
        return Running(command, self.job.folder / log, within, commit_seconds=self.draw.choice(COMMIT_SECONDS))

    def disturb(
        self,
        fault: str,
        codes: Collection[int],
        *,
        within: Within = plainly,
        during: Callable[[Running], object] = lambda _: None,
        by_machine: bool = False,
    ) -> Ended:
        """Run the command once, with a fault; `codes` are the exit codes that it may end with beside success."""
        running = self.start(self.command(), within)
        during(running)
        ended = running.wait()
        self.machine_knows = by_machine
        self.ended(fault, ended, codes)
        return ended

    def ended(self, fault: str, ended: Ended, codes: Collection[int]) -> None:
        """Check the promises after a run."""
        self.tally.count(fault, ended.code)
        options = " ".join(ended.arguments[ended.arguments.index("float32") + 1 :])
        self.history.append(f"{fault}: ended with {ended.code} after {ended.seconds:.2f} s [{options}]")
        self.history += [f"    {line}" for line in ended.printed.splitlines() if line.startswith("fastvec: ")]
        require_end(ended, self.success | set(codes) | ({1, 4} if self.damaged else set()))
        self.check_files()

    def killed(self, fault: str) -> None:
        """Check the promises after a run that did not end for a reason of Python's, and was killed."""
        self.machine_knows = False
        self.tally.count(fault, -signal.SIGKILL)
        self.history.append(f"{fault}: hung in the start of a thread, and was killed")
        self.check_files()

    def check_files(self) -> None:
        """Raise Violation if a file has a finished name and not the bytes of the undisturbed run."""
        found, expected = contents(self.job.output), self.expected.files
        for name in found.keys() & expected.keys() - self.tainted:
            if found[name] != expected[name]:
                raise Violation(f"{name} is not that of the undisturbed run: {compared(found[name], expected[name])}")
        if self.job.final in found.keys() - self.tainted:
            missing = sorted(filter(self._is_needed, expected.keys() - found.keys() - self.tainted))
            if missing:
                raise Violation(f"{self.job.final} is there, but not {missing}")
        self.tainted = {name for name in self.tainted if name in expected and found.get(name) != expected[name]}

    def _is_needed(self, name: str) -> bool:
        """Return whether a finished output must have the file; messages say to delete a damaged record."""
        return not self.damaged or Path(name).name != RECORD

    def finish(self) -> None:
        """Run the command undisturbed, do what its errors say, until the job is done; check the result."""
        end_orphans()
        options: tuple[str, ...] = ()
        for _ in range(ROUNDS):
            remedy = self._run_all(options)
            if remedy is None and (remedy := self._verify()) is None:
                break
            options = remedy
        else:
            raise Violation(f"the job is not done after {ROUNDS} runs whose advice was followed")
        found, expected = contents(self.job.output), self.expected.files
        differing = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
        names = sorted(name for name in differing if name in found or self._is_needed(name))
        if names:
            raise Violation(f"{names} are not those of the undisturbed run")

    def _run_all(self, options: tuple[str, ...]) -> tuple[str, ...] | None:
        """Run the commands of the job; returns options that those which fail ask for."""
        if "--overwrite" in options and self.job.kind == "halves":  # which refuse it, and tell to delete the folder
            shutil.rmtree(self.job.target)
            options = ()
        asked = None
        for command in self.job.commands:
            ended = self.start((*command, *options)).wait()
            self.ended(NONE, ended, ())
            if ended.code not in self.success:
                remedy = follow(ended)
                if remedy is None:
                    raise Violation(f"the error does not say what to do:\n{ended.printed}")
                asked = asked or remedy
        return asked

    def _verify(self) -> tuple[str, ...] | None:
        """Run `fastvec verify`; if it fails because of damage, delete what is damaged, and return options."""
        ended = self.start(("verify", str(self.job.target))).wait()
        if ended.code == 0:
            return None
        if not self.damaged or ended.code != 1:
            raise Violation(f"fastvec verify ends with {ended.code}:\n{ended.printed}")
        self.history += [f"    {line}" for line in ended.printed.splitlines() if line.startswith("FAILED")]
        if not follow_verify(ended.printed, self.job.target):
            raise Violation(f"fastvec verify does not say what to do:\n{ended.printed}")
        return ()


def sleep_until(begin: float, seconds: float) -> None:
    time.sleep(max(begin + seconds - time.monotonic(), 0))


def compared(found: bytes, expected: bytes) -> str:
    """Return how many rows of a file are lost, doubled, reordered and wrong."""
    try:
        tables = [_table(content) for content in (found, expected)]
        ours, theirs = [table["row"].to_pylist() for table in tables]
    except (pa.ArrowException, KeyError, OSError):
        return f"{len(found):,} bytes, expected {len(expected):,}"
    rows = [dict(zip(table["row"].to_pylist(), table.to_pylist(), strict=True)) for table in tables]
    wrong = sum(repr(rows[0][row]) != repr(rows[1][row]) for row in rows[0].keys() & rows[1].keys())
    lost, doubled = len(set(theirs) - set(ours)), len(ours) - len(set(ours))
    return f"{lost} rows lost, {doubled} doubled, {'' if ours == sorted(ours) else 'not '}in order, {wrong} wrong"


def _table(content: bytes) -> pa.Table:
    return pq.read_table(BytesIO(content)) if content.startswith(b"PAR1") else ipc.open_file(content).read_all()
