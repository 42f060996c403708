"""Files in blocks with a CRC32 each: which are damaged, and how much of a file is read back after it was written."""

import errno
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastvec.system import blocks as module
from fastvec.system.blocks import Block, DamagedBlockError, damaged, described, first_damaged, read_back
from fastvec.system.durable_files import forget_cached

PIECES = [b"one", b"two two", b"", b"four"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"".join(PIECES))
    return tmp_path / "file"


@pytest.fixture
def blocks() -> list[Block]:
    ends = [sum(map(len, PIECES[: index + 1])) for index in range(len(PIECES))]
    return [
        Block(rows=index, end_offset=end, crc32=zlib.crc32(piece))
        for index, (end, piece) in enumerate(zip(ends, PIECES, strict=True))
    ]


def test_all_damaged_blocks_are_found(path: Path, blocks: list[Block]) -> None:
    assert (damaged(path, blocks), first_damaged(path, blocks)) == ([], None)
    path.write_bytes(b"onetwo tw0foru")
    assert (damaged(path, blocks), first_damaged(path, blocks)) == ([1, 3], 1)
    path.write_bytes(b"onetwo")
    assert damaged(path, blocks) == [1, 3]  # the empty one between them has nothing to lose


def test_a_bad_sector_is_damage_of_its_block(path: Path, blocks: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() == 3:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Disk(path))
    assert damaged(path, blocks) == [1]
    with pytest.raises(OSError, match="Input/output error"):
        first_damaged(path, blocks)


def test_places_are_rows_and_bytes(blocks: list[Block]) -> None:
    assert (
        described(blocks, [1, 3], "batch")
        == "batch 1 (rows 0 to 0, bytes 3 to 9), batch 3 (rows 3 to 5, bytes 10 to 13)"
    )
    assert described(blocks, [0], "batch") == "the end (bytes 0 to 2)"
    assert described(blocks[:1] * 5, range(5), "batch").endswith(" and 2 more")


class Clock:
    """A disk that reads a block a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def read(self, path: Path, blocks: list[Block]) -> Iterator[bool]:
        for _ in blocks:
            self.now += 1
            yield True


@pytest.mark.parametrize(
    ("wanted", "seconds", "always", "read", "expected"),
    [
        (None, 1000.0, 0, 10, True),  # 10 of 1000 seconds
        (None, 999.0, 0, 1, False),  # more than 1 %: as soon as the rate is known
        (None, 999.0, 400, 4, False),
        (None, 0.0, 1000, 10, True),  # so small that it does not matter
        (True, 0.0, 0, 10, True),
        (False, 1000.0, 1000, 0, False),
    ],
)
def test_reading_back_takes_at_most_one_percent_unless_it_is_wanted(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: bool | None,
    seconds: float,
    always: int,
    read: int,
    expected: bool,
) -> None:
    clock, blocks = Clock(), [Block(rows=1, end_offset=100 * (index + 1), crc32=0) for index in range(10)]
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "are_intact", clock.read)
    monkeypatch.setattr(module, "ALWAYS_BYTES", always)
    assert read_back(path, blocks, wanted=wanted, job_seconds=seconds) == expected
    assert clock.now == read


def test_a_block_that_is_read_otherwise_is_told(path: Path, blocks: list[Block]) -> None:
    assert read_back(path, blocks, wanted=None, job_seconds=0) is True
    path.write_bytes(b"onetwo tw0foru")
    with pytest.raises(DamagedBlockError) as error:
        read_back(path, blocks, wanted=None, job_seconds=0)
    assert error.value.index == 1
    assert read_back(path, blocks, wanted=False, job_seconds=0) is False


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="macOS has no posix_fadvise")
def test_all_cached_pages_are_dropped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advised = []

    def advise(fd: int, *rest: int) -> None:
        advised.append((os.fstat(fd).st_ino, *rest))
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    forget_cached(path)
    assert advised == [(path.stat().st_ino, 0, 0, os.POSIX_FADV_DONTNEED)]
