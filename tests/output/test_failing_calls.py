"""Every system call may fail, and every bit of unfinished work may flip: one line, and the same bytes in the end."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvec.errors import DiskFullError, FastvecError, OutputError, RefusedError
from fastvec.output import writer
from fastvec.output.convert import convert
from fastvec.output.merge import merge_files
from fastvec.output.verify import verify
from tests import THOROUGH
from tests.helpers.outputs import contents, make_job, run_job, start_job

if sys.platform == "win32":
    pytest.skip("needs flock", allow_module_level=True)

from benchmarks.faulting.machine import POWER_CUTS, Fails, Machine

CHUNKS = 3
Program = Callable[[Path], object]


@pytest.fixture(autouse=True)
def commit_every_second_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # the machine knows what it makes durable; else it takes time
    monkeypatch.setattr(writer, "GROUP_BYTES", 1000)
    monkeypatch.setattr(writer, "GROUP_SECONDS", 1e9)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "folder", tmp_path / "attic")


@pytest.fixture(params=["arrow", "parquet", "convert .parquet", "convert .npy", "merge .arrow", "merge .parquet"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Program:
    """What writes outputs, to the folder that it is called with."""
    kind, _, suffix = request.param.partition(" ")
    if not suffix:
        return lambda folder: run_job(folder / f"vecs.{kind}", chunks=CHUNKS)
    first, second = tmp_path / "first.arrow", tmp_path / "second.arrow"
    run_job(first, chunks=CHUNKS)
    run_job(second, job=make_job(inputs=[["other.parquet", 1, 1]]), chunks=CHUNKS)
    if kind == "convert":
        return lambda folder: convert(first, folder / f"v{suffix}", overwrite=True)
    return lambda folder: merge_files([first, second], folder / f"v{suffix}", overwrite=True)


def errors_of(machine: Machine, program: Program, fails: Fails, expected: type[FastvecError]) -> list[str]:
    """Run a program of which calls fail, and return the error it ends with, if any; another error is raised."""
    errors = []

    def run() -> None:
        try:
            program(machine.folder)
        except expected as error:
            errors.append(str(error))

    machine.run(run, fails=fails)
    return errors


@pytest.mark.sampled
@pytest.mark.parametrize("is_over", [True, False])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_any_call_fails(machine: Machine, program: Program, error: int, is_over: bool) -> None:
    """Once, or from then on. The error is one line, no half file has a final name, and the same command finishes."""
    program(machine.folder)
    expected = machine.files()
    machine.start_with(frozenset())
    calls = machine.run(lambda: program(machine.folder))
    for at in range(0, len(calls), 1 if THOROUGH else 11):

        def fails(index: int, name: str, at: int = at) -> int | None:
            fails_again = not is_over and name in ("open", "write", "fsync")
            return error if index == at or (index > at and fails_again) else None

        machine.start_with(frozenset())
        messages = errors_of(machine, program, fails, DiskFullError if error == errno.ENOSPC else OutputError)
        assert all("\n" not in message for message in messages)
        finished = {
            (name, content) for name, content in machine.files() if not name.endswith((".part", ".journal", ".tmp"))
        }
        assert finished <= expected, f"{calls[at]}, call {at}"
        program(machine.folder)
        assert machine.files() == expected, f"{calls[at]}, call {at}"


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_a_merge_is_killed_at_every_system_call(machine: Machine, tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / "first.arrow", tmp_path / "second.arrow"
    run_job(first, chunks=CHUNKS)
    run_job(second, job=make_job(inputs=[["other.parquet", 1, 1]]), chunks=1)

    def job() -> None:
        merge_files([first, second], machine.folder / f"v{suffix}", overwrite=True)

    job()
    expected = machine.files()
    machine.start_with(frozenset())
    for kill_at in range(0, len(machine.run(job)), 1 if THOROUGH else 11):
        machine.start_with(frozenset())
        machine.run(job, kill_at=kill_at, midway=True)
        for files in {machine.after_power_cut(*cut) for cut in POWER_CUTS}:
            assert {file for file in files if not file[0].endswith(".tmp")} <= expected
            machine.start_with(files)
            job()
            assert machine.files() == expected


@pytest.mark.parametrize("kind", ["embed .arrow", "embed .parquet", "convert .parquet", "merge .arrow"])
def test_an_old_output_keeps_its_row_errors_if_a_call_fails(machine: Machine, tmp_path: Path, kind: str) -> None:
    """What the failing call leaves is the old output or the new one, with its own row errors."""
    command, _, suffix = kind.partition(" ")
    source, output = tmp_path / "source.arrow", machine.folder / f"v{suffix}"
    run_job(source, chunks=CHUNKS)
    run_job(output, job=make_job(model="another"))
    old = machine.files()

    def program(folder: Path) -> object:
        if command == "embed":
            return run_job(output, chunks=CHUNKS, overwrite=True)
        if command == "convert":
            return convert(source, output, overwrite=True)
        return merge_files([source, source.with_name("other.arrow")], output, overwrite=True)

    run_job(source.with_name("other.arrow"), job=make_job(inputs=[["other.parquet", 1, 1]]), chunks=CHUNKS)
    kept = 0
    machine.start_with(old)
    for at in range(len(machine.run(lambda: program(machine.folder)))):
        machine.start_with(old)

        def fails(index: int, name: str, at: int = at) -> int | None:
            return errno.EIO if index == at else None

        errors_of(machine, program, fails, OutputError)
        errors = [check.detail for check in verify(output).checks if check.name == "row errors" and not check.passed]
        assert errors == [], f"{machine.calls[at]}, call {at}"
        kept += dict(old).items() <= dict(machine.files()).items()
    assert kept


def finish(output: Path, expected: dict[str, bytes]) -> str | None:
    """Run the job, after what its error asks for, and return the error; in the end, the files must be `expected`."""
    message = None
    try:
        run_job(output, chunks=CHUNKS)
    except (OutputError, RefusedError) as error:
        message = str(error)
    if message is not None:
        assert "\n" not in message
        assert not output.exists()
        output.with_name("vecs.arrow.journal").unlink()
        is_unknown = "replace it with --overwrite" in message or "move it away" in message
        if not is_unknown:
            assert "delete both files" in message or "delete it and vecs.arrow.part" in message
            output.with_name("vecs.arrow.part").unlink(missing_ok=True)
        run_job(output, chunks=CHUNKS, overwrite=is_unknown)
    assert contents(output.parent) == expected
    return message


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    (tmp_path / "whole").mkdir()
    run_job(tmp_path / "whole" / "vecs.arrow", chunks=CHUNKS)
    return contents(tmp_path / "whole")


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["vecs.arrow.journal", "vecs.arrow.part"])
def test_any_bit_of_unfinished_work_flips(output: Path, whole: dict[str, bytes], name: str) -> None:
    start_job(output, 2).close()
    before = contents(output.parent)
    step = 3 if name.endswith(".journal") else 29  # each byte of the journal has its turn
    for bit in range(0, 8 * len(before[name]), step if THOROUGH else 401):
        for path in output.parent.iterdir():
            path.unlink()
        flipped = bytearray(before[name])
        flipped[bit // 8] ^= 1 << bit % 8
        for file, content in {**before, name: bytes(flipped)}.items():
            output.with_name(file).write_bytes(content)
        finish(output, whole)


@pytest.mark.sampled
def test_the_tail_of_unfinished_work_is_lost(output: Path, whole: dict[str, bytes]) -> None:
    """At any length. What the journal does not list is not missed."""
    start_job(output, 2).close()
    before = contents(output.parent)
    part = before["vecs.arrow.part"]
    lengths = range(0, len(part), 1 if THOROUGH else 113)
    for data in [*(part[:length] for length in lengths), part + b"\0" * 50, part + b"garbage" * 5000]:
        for path in output.parent.iterdir():
            path.unlink()
        for file, content in {**before, "vecs.arrow.part": data}.items():
            output.with_name(file).write_bytes(content)
        assert finish(output, whole) is None or len(data) < len(part)


def test_clocks_that_jump_change_no_byte(
    output: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back and forth, by hours; a clock that goes back delays a commit until there is enough data."""
    jumps = iter([0.0, 7200.0, -7200.0, 1.0, 1e9, -1e9, *range(1000)])
    for name in ("time.monotonic", "time.time"):
        monkeypatch.setattr(name, lambda: next(jumps))
    run_job(output, chunks=CHUNKS)
    assert contents(output.parent) == whole
