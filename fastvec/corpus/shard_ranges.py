"""Divides the rows of a corpus into shards, the ranges that separate processes embed.

The ranges depend on the corpus alone, not on how many processes there are. A run in one process ends a chunk where a
shard ends, so that the record batches of the shards are those of the single file.
"""

from collections.abc import Sequence

# A row group is divided when it is this many times larger than a shard should be: each part of it is read from the
# beginning of the group.
LARGEST_GROUP = 2
FEWEST_ROWS = 4096  # a shard has at least a few chunks
SHARDS = 64  # so many, if they are not too small: then eight processes finish within 2 % of each other's time
MOST_BYTES = 256 << 20  # of vectors


def default_shard_rows(rows: int, row_bytes: int) -> int:
    """Return how many rows a shard should have if the corpus has `rows` and the vectors of one take `row_bytes`."""
    return max(min(-(-rows // SHARDS), MOST_BYTES // row_bytes), FEWEST_ROWS)


def shard_ranges(groups: Sequence[tuple[int, int]], shard_rows: int) -> list[range]:
    """Divide the rows of `groups`, the begin and end of each row group, into ranges of about `shard_rows` rows.

    A range has whole row groups, up to `shard_rows` rows or one group; or a part of a large group. Without rows, there
    is one empty range. Raises ValueError if `shard_rows` is below 1.
    """
    if shard_rows < 1:
        raise ValueError(f"a shard needs at least 1 row, got {shard_rows}")
    begins = [0]
    for begin, end in groups:
        if end - begins[-1] > shard_rows and begin > begins[-1]:
            begins.append(begin)
        if end - begin > LARGEST_GROUP * shard_rows:
            parts = -(-(end - begin) // shard_rows)
            begins += [begin + (end - begin) * part // parts for part in range(1, parts)]
    ends = [*begins[1:], groups[-1][1] if groups else 0]
    return [range(begin, end) for begin, end in zip(begins, ends, strict=True)]
