import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from fastvec.errors import OutputError, RefusedError
from fastvec.fingerprint import Json, differences
from fastvec.output.journal import Chunk, Journal, RowError
from fastvec.system.blocks import Block
from tests.helpers.outputs import make_job

CHUNKS = [
    Chunk(block=Block(rows=5, end_offset=100, crc32=17), counts={"nulls": 1}, errors=(), batch_tokens=1024),
    Chunk(
        block=Block(rows=4, end_offset=180, crc32=2**32 - 1),
        counts={"nulls": 0},
        errors=(RowError(row=8, code="not_finite"),),
        batch_tokens=512,
    ),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed journal of two chunks."""
    path = tmp_path / "vecs.arrow.journal"
    journal = Journal.open(path, create=True)
    journal.begin(make_job())
    journal.append(CHUNKS[:1])
    journal.append(CHUNKS[1:])
    journal.close()
    return path


def reopened(path: Path) -> Journal:
    journal = Journal.open(path, create=False)
    journal.close()
    return journal


def test_a_reopened_journal_has_its_job_and_chunks(path: Path) -> None:
    assert reopened(path).job == make_job()
    assert reopened(path).chunks == CHUNKS


def test_chunks_that_are_given_up_leave_no_line(path: Path) -> None:
    """A line left behind one that is written shorter would look like damage."""
    lines = path.read_bytes().splitlines(keepends=True)
    journal = Journal.open(path, create=False)
    journal.keep(1)
    assert (journal.chunks, path.read_bytes()) == (CHUNKS[:1], b"".join(lines[:2]))
    journal.append(CHUNKS[:1])
    journal.close()
    assert reopened(path).chunks == [CHUNKS[0], CHUNKS[0]]


def test_a_torn_tail_is_dropped_wherever_it_is_torn(path: Path) -> None:
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in sorted({*range(0, len(whole), 9), *ends[:-1], *(end - 1 for end in ends)}):
        for tail in (b"", b"\0" * (len(whole) - length)):
            path.write_bytes(whole[:length] + tail)
            journal = Journal.open(path, create=False)
            known = sum(end <= length for end in ends)
            assert (journal.job is not None, journal.chunks) == (known > 0, CHUNKS[: max(known - 1, 0)])
            if journal.job is None:
                journal.begin(make_job())
            journal.append(CHUNKS[len(journal.chunks) :])
            journal.close()
            assert reopened(path).chunks == CHUNKS


@pytest.mark.parametrize(
    ("line", "expected"),
    [(0, "line 1 is damaged, but later lines are not; "), (1, "line 2 is damaged, but later lines are not; ")],
)
def test_a_damaged_line_among_whole_ones_is_refused(path: Path, line: int, expected: str) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    for i in range(len(lines[line]) - 1):  # not the newline: without it, the line would merge with the next
        flipped = bytes([*lines[line][:i], lines[line][i] ^ 4, *lines[line][i + 1 :]])
        path.write_bytes(b"".join([*lines[:line], flipped, *lines[line + 1 :]]))
        with pytest.raises(OutputError, match=expected + "delete it and vecs.arrow.part, and run the command again"):
            reopened(path)


def test_lines_out_of_order_are_refused(path: Path) -> None:
    header, first, second = path.read_bytes().splitlines(keepends=True)
    for lines in ([header, second], [header, second, first], [header, first, first]):
        path.write_bytes(b"".join(lines))
        with pytest.raises(OutputError, match="its chunks are not in order; delete it and vecs"):
            reopened(path)


@pytest.mark.parametrize("content", [b"my diary\n", b"my diary", b'{"row": 1}\n{"row": 2}\n'])
def test_what_is_not_a_journal_is_refused_and_kept(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RefusedError, match="is not a fastvec journal: move it away, or choose another output"):
        reopened(path)
    assert path.read_bytes() == content


def test_a_later_format_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvec.output.journal._FORMAT", 2)
    with pytest.raises(RefusedError, match="is from another version: finish it with that, or choose another output"):
        reopened(path)


def test_it_is_locked_until_it_is_closed(path: Path) -> None:
    journal = Journal.open(path, create=False)
    with pytest.raises(RefusedError, match="is locked by a running process: wait for it, or give another output"):
        Journal.open(path, create=False)
    journal.close()
    reopened(path)


def test_it_is_deleted_before_its_lock_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise another run could mistake the finished output for an unfinished one."""
    unlink = os.unlink

    def unlink_if_locked(target: Path) -> None:
        with pytest.raises(RefusedError, match="is locked by a running process"):
            Journal.open(target, create=False)
        unlink(target)

    journal = Journal.open(path, create=False)
    monkeypatch.setattr(os, "unlink", unlink_if_locked)
    journal.remove()
    assert not path.exists()


def test_a_journal_deleted_before_our_lock_is_not_ours(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finishing run deletes its journal before it releases the lock that the other run waits for."""
    flock = fcntl.flock

    def after_it_finished(*args: Any) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(*args)

    monkeypatch.setattr(fcntl, "flock", after_it_finished)
    with pytest.raises(FileNotFoundError):
        Journal.open(path, create=False)
    monkeypatch.setattr(fcntl, "flock", after_it_finished)
    path.touch()
    journal = Journal.open(path, create=True)
    journal.begin(make_job())
    journal.close()
    assert reopened(path).job == make_job()


def test_a_file_system_without_locks_is_used_without(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert reopened(path).chunks == CHUNKS


def test_differences_name_the_place() -> None:
    old: Json = {"dims": 8, "inputs": [["a", 1], ["b", 2]], "normalize": True, "instruction": "x" * 100}
    new: Json = {"dims": 8, "inputs": [["a", 1], ["b", 3]], "normalize": 1, "instruction": None, "limit": 5}
    assert list(differences(old, new, "")) == [
        "inputs[1][1] was 2, now 3",
        "normalize was true, now 1",
        f'instruction was "{"x" * 78}…, now null',
        "limit was null, now 5",
    ]
    assert list(differences([1], [1, 2], "inputs")) == ["inputs was [1], now [1, 2]"]
    assert list(differences(old, old, "")) == []
