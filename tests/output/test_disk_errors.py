"""Disks that are full, make partial writes or fail: durable data survives, and the command resumes."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastvec.errors import DiskFullError, OutputError
from fastvec.output import writer as writer_module
from fastvec.output.writer import RowError, Writer
from tests.helpers.outputs import ROWS, contents, make_chunk, make_job, run_job, start_job, write_chunk


class Disk:
    """Replaces os.write: the disk has `free` bytes left and accepts at most `largest_write` bytes per call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 1 << 40
        self.largest_write = 1 << 40
        self._write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, fd: int, data: Any) -> int:
        if self.free == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(fd, data[: min(self.free, self.largest_write)])
        self.free -= written
        return written


@pytest.fixture(autouse=True)
def commits_do_not_depend_on_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "GROUP_SECONDS", 1e9)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_partial_writes_are_completed(output: Path, expected: dict[str, bytes], disk: Disk) -> None:
    disk.largest_write = 7
    run_job(output)
    assert contents(output.parent) == expected


def test_a_full_disk_keeps_what_is_durable(
    output: Path, expected: dict[str, bytes], disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much fits, exit code 5 and the number of safe rows; with room again, the same bytes."""
    monkeypatch.setattr(writer_module, "GROUP_BYTES", 1200)
    run_job(output)
    needed, output_files = (1 << 40) - disk.free, [path.name for path in output.parent.iterdir()]
    messages = set()
    for free in range(0, needed, 97):
        for name in output_files:
            (output.parent / name).unlink(missing_ok=True)
        disk.free = free
        with pytest.raises(DiskFullError) as full:
            run_job(output)
        messages.add(str(full.value))
        assert not output.exists()
        disk.free = 1 << 40
        run_job(output)
        assert contents(output.parent) == expected
        output_files = list(expected)
    assert messages == {
        f"no space left for {output}{safe}: make room and run the same command again"
        for safe in ("", *(f"; its first {rows} rows are safe" for rows in (15, 30, 35)))
    }
    assert full.value.exit_code == 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KB."""
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", mount_point], capture_output=True)
    if mount.returncode != 0:
        pytest.skip("mounting a tmpfs needs root on Linux")
    yield mount_point
    subprocess.run(["umount", "--lazy", mount_point], check=True)


def write_until_it_fails(writer: Writer, *, rows: int) -> None:
    for index in range(100):
        batch, counts, _ = make_chunk(index, rows=rows)
        errors = [RowError(row=index * rows + i, code="not_finite") for i in range(40)]  # 1.2 KB in the journal
        writer.write(batch, counts=counts, errors=errors, batch_tokens=1024)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    """Six chunks of 30 KB fit; discarding the part of the seventh makes room for 8 KB of journal."""
    output = small_disk / "vecs.arrow"
    writer = start_job(output, 0)
    with pytest.raises(DiskFullError, match="no space left"):
        write_until_it_fails(writer, rows=600)
    assert writer.rows == 0
    writer.close()
    assert writer.rows == 6 * 600
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    assert run_job(output, chunks=6) is not None


def test_a_file_that_may_not_grow(output: Path) -> None:
    """The process's file size limit raises a different error from a full disk, and is as safe."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = start_job(output, 2)
    writer.commit()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match="arrow: File too large; its first 10 rows are safe") as error:
            write_until_it_fails(writer, rows=500)
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.exit_code == 1
    assert writer.rows == 2 * ROWS + 3 * 500


def test_what_a_failed_fsync_may_have_lost_is_not_counted(
    output: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux drops the bytes it could not write and reports it only once: a second fsync would succeed."""
    writer = start_job(output, 2)
    writer.commit()
    write_chunk(writer, 2)
    with monkeypatch.context() as failing:

        def fail(fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        failing.setattr(os, "fsync", fail)
        with pytest.raises(OutputError, match="Input/output error; its first 10 rows are safe"):
            writer.commit()
    writer.close()
    resumed = Writer.open(output, make_job())
    resumed.close()
    assert resumed.rows == 2 * ROWS
    run_job(output)
    assert contents(output.parent) == expected
