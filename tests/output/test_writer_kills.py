"""However and whenever a run is killed, rerunning the command produces the same bytes."""

import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fastvec.output import writer
from fastvec.output.writer import Writer
from tests.helpers.outputs import CHUNKS, contents, make_job, run_job, start_job

if sys.platform == "win32":
    pytest.skip("needs fork and flock", allow_module_level=True)

from benchmarks.faulting.machine import POWER_CUTS, Files, Machine

ERRORS = b'{"row": 9, "code": "not_finite"}\n'
FEW_CHUNKS = 3


@pytest.fixture(autouse=True)
def commit_every_second_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "GROUP_BYTES", 1000)  # a chunk has 552 bytes
    monkeypatch.setattr(writer, "GROUP_SECONDS", 1e9)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "folder", tmp_path / "attic")


def job_of(machine: Machine, name: str = "vecs.arrow", *, overwrite: bool = False) -> Callable[[], object]:
    return lambda: run_job(machine.folder / name, chunks=FEW_CHUNKS, overwrite=overwrite)


@pytest.fixture
def expected(machine: Machine) -> Files:
    """The files of an uninterrupted run."""
    job_of(machine)()
    files = machine.files()
    assert {name for name, _ in files} == {"vecs.arrow", "vecs.errors.jsonl"}
    assert ("vecs.errors.jsonl", ERRORS) in files
    machine.start_with(frozenset())
    return files


def kill_points(machine: Machine, program: Callable[[], object]) -> list[tuple[int, bool]]:
    """Return all kill points: before each system call of `program` (hence after each too) and midway in each write."""
    calls = machine.run(program)
    return [(i, midway) for i, name in enumerate(calls) for midway in ((False, True) if name == "write" else (False,))]


def left_by_kills(machine: Machine, program: Callable[[], object], start: Files) -> set[Files]:
    """All contents the folder may have after `program` was killed at any point, with or without a power cut."""
    machine.start_with(start)
    left = set()
    for kill_at, midway in kill_points(machine, program):
        machine.start_with(start)
        machine.run(program, kill_at=kill_at, midway=midway)
        left |= {machine.after_power_cut(*cut) for cut in POWER_CUTS}
    return left


@pytest.mark.slow
def test_killed_and_killed_again_at_every_system_call(machine: Machine, expected: Files) -> None:
    """From every state reachable by any number of kills and power cuts, the command produces the same bytes."""
    job = job_of(machine)
    todo, seen = [frozenset[tuple[str, bytes]]()], set[Files]()
    while todo:
        files = todo.pop()
        if files in seen:
            continue
        seen.add(files)
        machine.start_with(files)
        machine.run(job)
        assert machine.files() == machine.after_power_cut("lost", "lost") == expected
        todo += left_by_kills(machine, job, files)
    assert len(seen) > 100


def test_an_overwrite_is_killed_at_every_system_call(machine: Machine, expected: Files) -> None:
    """The old output remains until the new one is complete."""
    run_job(machine.folder / "vecs.arrow", job=make_job(model="another"))
    old = machine.files()
    outputs = {content for name, content in old | expected if name == "vecs.arrow"}
    for files in left_by_kills(machine, job_of(machine, overwrite=True), old):
        assert dict(files)["vecs.arrow"] in outputs
        machine.start_with(files)
        machine.run(job_of(machine, overwrite=True))
        assert machine.files() == expected


def test_a_resume_after_damage_is_killed_at_every_system_call(machine: Machine, expected: Files) -> None:
    """The rows before the damaged batch are kept, and the others are the same again."""
    start_job(machine.folder / "vecs.arrow", FEW_CHUNKS).close()
    part = machine.folder / "vecs.arrow.part"
    content = part.read_bytes()
    part.write_bytes(content[:-600] + bytes([content[-600] ^ 1]) + content[-599:])
    for files in left_by_kills(machine, job_of(machine), machine.files()):
        machine.start_with(files)
        machine.run(job_of(machine))
        assert machine.files() == machine.after_power_cut("lost", "lost") == expected


def test_the_file_is_read_back_after_it_is_durable_and_before_it_is_published(machine: Machine) -> None:
    calls = machine.run(job_of(machine))
    assert calls.index("posix_fadvise") > calls.index("fsync")
    assert calls[calls.index("posix_fadvise") - 3 : calls.index("posix_fadvise")] == ["fsync", "close", "open"]
    assert "replace" not in calls[: calls.index("posix_fadvise")]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_parquet_output_is_killed_at_every_system_call(machine: Machine, overwrite: bool) -> None:
    """Also during the conversion of the complete Arrow file. What has the final name is whole, or the old output."""
    job = job_of(machine, "vecs.parquet", overwrite=overwrite)
    job()
    expected = machine.files()
    assert {name for name, _ in expected} == {"vecs.parquet", "vecs.parquet.errors.jsonl"}
    start = Files()
    if overwrite:
        run_job(machine.folder / "vecs.parquet", job=make_job(model="another"), overwrite=True)
        start = machine.files()
    outputs = {dict(files).get("vecs.parquet") for files in (start, expected)}
    for files in left_by_kills(machine, job, start):
        assert dict(files).get("vecs.parquet") in outputs
        machine.start_with(files)
        machine.run(job)
        assert machine.files() == machine.after_power_cut("lost", "lost") == expected


def fork(program: Callable[[], object]) -> int:
    """Run `program` in a child process and return its id. The child exits with 0, or with 1 after an exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns about threads; the child needs none
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        program()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_sigkill_at_every_system_call(machine: Machine, expected: Files) -> None:
    """The same test with real processes killed by SIGKILL."""
    job = job_of(machine)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for kill_at, midway in kill_points(machine, job):
        machine.start_with(frozenset())
        child = fork(partial(machine.run, job, kill_at=kill_at, midway=midway, die=die))
        assert exit_code(child) == -signal.SIGKILL
        job()
        assert machine.files() == expected, f"killed at call {kill_at}, midway: {midway}"


@pytest.mark.slow
def test_sigkill_at_random_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill each of four runs, which sleep for 0.7 s in total, up to seven times, each time after at most 0.6 s."""
    write, committed = Writer.write, tmp_path / "committed"

    def write_slowly(self: Writer, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.7 / CHUNKS)
        if self.rows > 0:
            committed.touch()
        write(self, *args, **kwargs)

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    draw, uninterrupted = random.Random(0), folder("uninterrupted")
    run_job(uninterrupted / "vecs.arrow")
    monkeypatch.setattr(Writer, "write", write_slowly)
    resumes = 0
    for trial in "abcd":
        output = folder(trial) / "vecs.arrow"
        committed.unlink(missing_ok=True)
        for _ in range(7):
            child = fork(lambda output=output: run_job(output))  # type: ignore[misc]
            time.sleep(draw.uniform(0.01, 0.6))
            os.kill(child, signal.SIGKILL)
            code = exit_code(child)
            if code != -signal.SIGKILL:
                assert code == 0  # it had ended by itself
                break
            resumes += committed.exists()
        run_job(output)
        assert contents(output.parent) == contents(uninterrupted)
    assert resumes > 0
