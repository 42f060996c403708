"""The campaign of faults passes, and finds bugs that are planted in the writer."""

import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("needs fork and /proc", allow_module_level=True)

import torch

from benchmarks import faults
from benchmarks.faulting import command, inside
from benchmarks.faulting import faults as kinds
from benchmarks.faulting import jobs as jobs_module
from benchmarks.faulting.command import adopting_orphans
from benchmarks.faulting.faults import Fault, kill_at_a_call, kill_at_a_time
from benchmarks.faulting.jobs import Jobs, Violation
from benchmarks.faulting.trial import NONE, Tally, Trial
from fastvec.output import writer
from fastvec.output.writer import Writer

MOST_SCENARIOS = 60


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """One corpus, embedded into one file, so that little is embedded undisturbed."""
    monkeypatch.setattr(jobs_module, "KINDS", {"arrow": 1})
    monkeypatch.setattr(jobs_module, "OPTIONS", {(): 1})
    monkeypatch.setattr(jobs_module, "CORPORA", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with adopting_orphans():
        yield Jobs(tmp_path, 0)
    torch.set_num_threads(threads)


def run_scenarios(jobs: Jobs, count: int) -> Tally:
    tally = Tally()
    for number in range(count):
        faults.run_scenario(jobs, 0, number, tally)
    return tally


def test_scenarios_are_run_until_their_job_is_done(jobs: Jobs) -> None:
    tally = run_scenarios(jobs, 2)
    assert tally.scenarios == 2
    assert tally.runs[NONE] >= 2
    assert f"{NONE:28} {tally.runs[NONE]:6}  0: " in faults.table(tally)


class NeverBegins(threading.Thread):
    """A thread that ends before Python notes that it has begun, as one for which there is no memory."""

    def _bootstrap(self) -> None:
        raise MemoryError


@pytest.mark.slow
@pytest.mark.parametrize("is_pythons", [True, False])
def test_only_the_start_of_a_thread_may_hang_without_memory(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, is_pythons: bool
) -> None:
    draw, tally = random.Random(0), Tally()
    trial = Trial(jobs.draw(draw), draw, tally)
    monkeypatch.setattr(command, "END_SECONDS", 5)
    hang = NeverBegins().start if is_pythons else threading.Event().wait
    monkeypatch.setattr(inside, "limit_memory", lambda *_: hang())
    with nullcontext() if is_pythons else pytest.raises(TimeoutError, match="did not end"):
        kinds.limit_memory(trial)
    assert tally.runs["memory limit"] == int(is_pythons)
    trial.remove()


class WithoutFsync:
    """The module `os` with an fsync that does nothing."""

    def fsync(self, fd: int) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def skip_the_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that of the chunks: the journal then lists what is not on the disk."""
    monkeypatch.setattr(writer, "os", WithoutFsync())


def rename_before_the_footer(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Writer.finish

    def finished(self: Writer, lines: Any, **options: Any) -> None:
        shutil.copyfile(self._part_path, self._output)
        finish(self, lines, **options)

    monkeypatch.setattr(Writer, "finish", finished)


def miscount_after_a_resume(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continue so many chunks too late: their rows are lost, or with -1 doubled.

    The first chunk gives their size: it is the same at each resume of a file, where
    two sizes would lose rows at one and double them at the next.
    """
    resume = Writer._resume

    def resumed(self: Writer) -> None:
        resume(self)
        self.rows += chunks * self._journal.chunks[0].block.rows

    monkeypatch.setattr(Writer, "_resume", resumed)


KILL = Fault(weight=1, cause=kill_at_a_time)
KILL_AT_A_CALL = Fault(weight=3, cause=kill_at_a_call)
POWER_CUT = Fault(weight=3, cause=partial(kill_at_a_call, power_cut=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "fault", "message"),
    [
        (skip_the_fsync, POWER_CUT, "delete both files|vecs.arrow is not that of the undisturbed run"),
        (rename_before_the_footer, KILL_AT_A_CALL, "vecs.arrow is not that of the undisturbed run"),
        (partial(miscount_after_a_resume, 1), KILL_AT_A_CALL, r"[1-9]\d* rows lost, 0 doubled, in order, 0 wrong"),
        (partial(miscount_after_a_resume, -1), KILL_AT_A_CALL, r"0 rows lost, [1-9]\d* doubled"),
    ],
    ids=["no fsync", "early rename", "a chunk lost", "a chunk doubled"],
)
def test_a_planted_bug_is_found(
    jobs: Jobs,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
    fault: Fault,
    message: str,
) -> None:
    monkeypatch.setattr(kinds, "FAULTS", [KILL, fault])
    plant(monkeypatch)
    with pytest.raises(Violation, match=message):
        run_scenarios(jobs, MOST_SCENARIOS)
