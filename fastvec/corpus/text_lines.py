"""Reads text files with one text per line as a single column; groups of lines take the place of row groups."""

from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

SUFFIX = ".txt"
COLUMN = "text"
GROUP_LINES = 16_384
BATCH_LINES = 1024
READ_BYTES = 1 << 20


def line_groups(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the number of lines and the byte offset of each group. The last line needs no line end."""
    starts, lines, position, ended = [0], 0, 0, True
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            found = -1
            while (found := block.find(b"\n", found + 1)) >= 0:
                lines += 1
                if lines % GROUP_LINES == 0:
                    starts.append(position + found + 1)
            position += len(block)
            ended = block.endswith(b"\n")
    lines += not ended
    if starts[-1] == position:
        starts.pop()
    rows = [GROUP_LINES] * (len(starts) - 1) + [lines - GROUP_LINES * (len(starts) - 1)] * bool(starts)
    return tuple(rows), tuple(starts)


def read_lines(path: Path, start: int, skip: int) -> Iterator[pa.RecordBatch]:
    """Yield the lines from byte offset `start` on as batches with a binary column `text`, skipping the first `skip`.

    A byte order mark at the start of the file is removed.
    """
    with path.open("rb") as file:
        file.seek(start)
        lines = islice(file, skip, None)
        first = start == skip == 0
        while batch := [line.rstrip(b"\r\n") for line in islice(lines, BATCH_LINES)]:
            if first:
                batch[0], first = batch[0].removeprefix(BOM_UTF8), False
            yield pa.RecordBatch.from_arrays([pa.array(batch, pa.binary())], [COLUMN])
