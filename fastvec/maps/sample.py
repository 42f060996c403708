"""Reads the vectors to draw.

Shapes: n rows drawn, D dimensions of a vector.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastvec.output.vector_column import FloatArray
from fastvec.vectors.stored import Vectors

ROWS_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    positions: npt.NDArray[np.int64]  # [n], ascending
    vectors: FloatArray  # [n, D], of length 1, or 0
    rows_with_vector: int  # of which these are the sample


def read_sample(vectors: Vectors, limit: int, seed: int) -> Sample:
    """Read the vectors of all rows that have one, or of `limit` of them.

    The sample is stratified: the rows are divided into `limit` runs of equal length, and a row of each is drawn with
    `seed`. So a corpus that is sorted, by date or by source, is sampled evenly. Raises OutputError if a file cannot be
    read.
    """
    counts = [len(block.present) for block in vectors.blocks(ROWS_AT_ONCE)]
    total = sum(counts)
    ranks = drawn_ranks(total, limit, seed)
    positions = np.empty(len(ranks), np.int64)
    taken = np.empty((len(ranks), vectors.dims), np.float32)
    seen = 0
    for block, count in zip(vectors.blocks(ROWS_AT_ONCE), counts, strict=True):
        low, high = np.searchsorted(ranks, [seen, seen + count])
        if low < high:
            rows = block.present[ranks[low:high] - seen]
            positions[low:high] = block.begin + rows
            taken[low:high] = vectors.floats(block, unit=True)[rows]
        seen += count
    return Sample(positions=positions, vectors=taken, rows_with_vector=total)


def drawn_ranks(total: int, limit: int, seed: int) -> npt.NDArray[np.int64]:
    """Return `min(total, limit)` ascending numbers below `total`, one of each of as many runs of equal length."""
    if total <= limit:
        return np.arange(total, dtype=np.int64)
    bounds = np.arange(limit + 1, dtype=np.int64) * total // limit
    return np.random.default_rng(seed).integers(bounds[:-1], bounds[1:])
