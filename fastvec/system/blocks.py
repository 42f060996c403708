"""Files whose consecutive parts, which are called blocks, each have a CRC32: which are damaged, and where."""

import errno
import json
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastvec.system.durable_files import forget_cached

_READ_BYTES = 1 << 20
_SHOWN = 3
ALWAYS_BYTES = 64 << 20  # that are read back of every file: 0.5 s from a hard disk
NOT_WRITTEN = "the disk does not return what was written"
SHARE = 0.01  # of a job's time that reading the rest may take


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A part of a file with `rows` rows. `crc32` covers the bytes from the previous block's end to `end_offset`."""

    rows: int
    end_offset: int
    crc32: int


def to_json(blocks: Iterable[Block]) -> str:
    # asdict takes several times as long, and this is done whenever an output is opened
    return json.dumps([{"rows": block.rows, "end_offset": block.end_offset, "crc32": block.crc32} for block in blocks])


class DamagedBlockError(Exception):
    """The block of this index was read back otherwise than it was written."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def are_intact(path: Path, blocks: Sequence[Block], *, skip_unreadable: bool = False) -> Iterator[bool]:
    """Yield for each block whether its bytes are there and match its CRC32.

    With `skip_unreadable`, a bad sector is damage, not an error. Checks 2 GB/s if the disk is that fast. Does not use a
    memory map, in which a bad sector would be a signal (SIGBUS).
    """
    start = 0
    with path.open("rb", buffering=0) as file:
        for block in blocks:
            left, crc32 = block.end_offset - start, 0
            try:
                file.seek(start)
                while left > 0 and (piece := file.read(min(left, _READ_BYTES))):
                    left, crc32 = left - len(piece), zlib.crc32(piece, crc32)
            except OSError as error:
                if error.errno != errno.EIO or not skip_unreadable:
                    raise
            yield left == 0 and crc32 == block.crc32
            start = block.end_offset


def damaged(path: Path, blocks: Sequence[Block]) -> list[int]:
    """Return the indices of all blocks whose bytes are missing, cannot be read or do not match their CRC32."""
    intact = are_intact(path, blocks, skip_unreadable=True)
    return [index for index, is_intact in enumerate(intact) if not is_intact]


def first_damaged(path: Path, blocks: Sequence[Block]) -> int | None:
    """Return the index of the first damaged block; None if there is none. What is after it is not read."""
    return next((index for index, intact in enumerate(are_intact(path, blocks)) if not intact), None)


def read_back(path: Path, blocks: Sequence[Block], *, wanted: bool | None, job_seconds: float) -> bool:
    """Compare a file with its blocks after it was made durable, and return whether all of it was.

    It is read from the disk, if the system drops its cached pages. If it is not `wanted` or unwanted, as much is read
    as costs little: the first 64 MiB, and the rest if by the rate so far that takes less than 1 % of `job_seconds`.
    Raises DamagedBlockError, and OSError.
    """
    if wanted is False:
        return False
    forget_cached(path)
    begin = time.monotonic()
    for index, intact in enumerate(are_intact(path, blocks)):
        if not intact:
            raise DamagedBlockError(index)
        read, size = blocks[index].end_offset, blocks[-1].end_offset
        expected = (time.monotonic() - begin) * size / read
        if wanted is None and read >= ALWAYS_BYTES and read < size and expected > SHARE * job_seconds:
            return False
    return True


def described(blocks: Sequence[Block], indices: Sequence[int], kind: str) -> str:
    """Say where in a file blocks are that are a `kind`: `batch 3 (rows 15 to 19, bytes 3,625 to 4,176)`.

    A block without rows is the end of a file.
    """
    shown = []
    for index in indices[:_SHOWN]:
        row, begin = sum(block.rows for block in blocks[:index]), blocks[index - 1].end_offset if index else 0
        place = f"bytes {begin:,} to {blocks[index].end_offset - 1:,}"
        rows = f"rows {row:,} to {row + blocks[index].rows - 1:,}"
        shown.append(f"{kind} {index:,} ({rows}, {place})" if blocks[index].rows else f"the end ({place})")
    more = len(indices) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")
