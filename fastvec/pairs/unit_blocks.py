"""Reads the vectors of outputs at length 1, in blocks of one size, without the rows that have no vector.

Shapes: b rows of a block, D dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastvec.output.vector_column import FloatArray
from fastvec.vectors.stored import Vectors

Positions = npt.NDArray[np.int64]
# Of standard deviations of the error of a similarity: less than one pair in 10^14 is further off.
_DEVIATIONS = 8


@dataclass(frozen=True, slots=True)
class UnitBlock:
    """Rows with a vector: their positions [b], which ascend, and vectors [b, D] of length 1."""

    positions: Positions
    vectors: FloatArray

    def __len__(self) -> int:
        return len(self.positions)


def unit_blocks(vectors: Vectors, size: int, *, begin: int = 0) -> Iterator[UnitBlock]:
    """Yield all rows with a vector from the position `begin` on, `size` at a time; the last block may have fewer.

    A block is overwritten by the next one. Raises OutputError if a file cannot be read.
    """
    size = min(size, max(vectors.rows - begin, 1))
    positions = np.empty(size, dtype=np.int64)
    units = np.empty((size, vectors.dims), dtype=np.float32)
    filled = 0
    for block in vectors.blocks(size, begin=begin):
        read, rows = vectors.floats(block, unit=True), np.arange(block.begin, block.begin + len(block))
        if block.valid is not None:
            read, rows = read[block.valid], rows[block.valid]
        done = 0
        while done < len(rows):
            count = min(size - filled, len(rows) - done)
            positions[filled : filled + count] = rows[done : done + count]
            units[filled : filled + count] = read[done : done + count]
            filled, done = filled + count, done + count
            if filled == size:
                yield UnitBlock(positions, units)
                filled = 0
    if filled:
        yield UnitBlock(positions[:filled], units[:filled])


def least_similarity(threshold: float, dims: int) -> np.float32:
    """Return the least computed similarity that counts as `threshold`, so that equal vectors have a similarity of 1.

    Rounding errors of a product of D numbers behave as a random walk: with unit roundoff u = 2⁻²⁴ the error of a
    product of unit vectors is λ √D u, where λ exceeds 8 with a probability of 2 exp(−8²/2) (Higham and Mary, "A new
    approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019). It is 1e-5 for D = 384.
    """
    return np.float32(threshold - _DEVIATIONS * dims**0.5 * 2.0**-24)
