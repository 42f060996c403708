"""Finds the k nearest rows of each row, by comparing all blocks.

Shapes: m rows of the left block, b of the right block, k neighbors, n candidates.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastvec.output.vector_column import FloatArray
from fastvec.pairs.products import Indices, Products
from fastvec.pairs.progress import PairCounter
from fastvec.pairs.unit_blocks import Positions, unit_blocks
from fastvec.vectors.stored import Vectors

NONE = -1  # the position where fewer than k rows were found
MOST_CANDIDATES = 1 << 22  # k times the rows of a left block
_ROWS_AT_ONCE = 256  # of which temporary arrays are made


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest rows of the rows at `rows` [m], nearest first: positions [m, k] and similarities [m, k].

    Where fewer than k rows were found, the position is -1.
    """

    rows: Positions
    positions: Positions
    similarities: FloatArray


def nearest_rows(
    products: Products,
    vectors: Vectors,
    others: Vectors,
    k: int,
    counter: PairCounter,
    *,
    least: float | np.float32 = -np.inf,
) -> Iterator[Nearest]:
    """Yield the `k` nearest of `others` for each row of `vectors` that has a vector, some rows after another, in order.

    Of equally near ones, the first are taken. If `others` is `vectors`, a row is not its own neighbor. Rows that are
    less similar than `least` are left out. Raises OutputError if a file cannot be read.
    """
    rows = max(min(products.rows, MOST_CANDIDATES // k), 1)
    for left in unit_blocks(vectors, rows):
        held, places = products.put(left.vectors), products.put(left.positions)
        best = _Best(len(left), k, least)
        for right in unit_blocks(others, products.columns):
            scores = products.similarities(held, products.put(right.vectors))
            if others is vectors:
                first, last = np.searchsorted(left.positions, right.positions[[0, -1]])
                itself = places[first : last + 1, None] == products.put(right.positions)[None]
                scores[first : last + 1][itself] = -np.inf
            mask = products.above(scores, products.put(best.bounds[:, None]))
            count = products.count(mask)
            if count > 4 * k * len(left) and k < len(right):
                _keep_best(products, scores, mask, k)
            if count:
                of, columns, similarities = products.pairs(scores, mask)
                best.add(of, right.positions[columns], similarities)
            counter.add(scores.shape[0] * scores.shape[1])
        positions, similarities = best.result()
        yield Nearest(left.positions, positions, similarities)


def _keep_best(products: Products, scores: Any, mask: Any, k: int) -> None:
    """Clear `mask` [m, b] but for the k largest `scores` of each row; of equal ones, the first."""
    for begin in range(0, len(mask), _ROWS_AT_ONCE):
        own, part = mask[begin : begin + _ROWS_AT_ONCE], scores[begin : begin + _ROWS_AT_ONCE]
        least = products.least_of_best(part, own, k)
        larger, equal = own & (part > least), own & (part == least)
        places_left = k - larger.sum(1)[:, None]
        mask[begin : begin + _ROWS_AT_ONCE] = larger | (equal & (equal.cumsum(1) <= places_left))


class _Best:
    """The k best of m rows so far. Only what is above `bounds` [m] can become one of them.

    Blocks come in the order of their positions, so what equals the k-th best so far comes after it. Candidates are
    gathered until there are k for each row, so that sorting takes a small share of the time.
    """

    def __init__(self, rows: int, k: int, least: float | np.float32) -> None:
        self._k = k
        below = np.nextafter(least, -np.inf, dtype=np.float32)
        self.bounds = np.full(rows, below, dtype=np.float32)
        self._positions = np.full((rows, k), NONE, dtype=np.int64)
        self._similarities = np.full((rows, k), -np.inf, dtype=np.float32)
        self._gathered: list[tuple[Indices, Positions, FloatArray]] = []

    def add(self, rows: Indices, positions: Positions, similarities: FloatArray) -> None:
        self._gathered.append((rows, positions, similarities))
        if sum(len(some) for some, _, _ in self._gathered) >= self._positions.size:
            self._merge()

    def result(self) -> tuple[Positions, FloatArray]:
        self._merge()
        return self._positions, self._similarities

    def _merge(self) -> None:
        if not self._gathered:
            return
        held, ranks = np.nonzero(self._positions != NONE)
        old = (held, self._positions[held, ranks], self._similarities[held, ranks])
        rows, positions, similarities = map(np.concatenate, zip(old, *self._gathered, strict=True))
        self._gathered.clear()
        # stable: of equally similar ones, those found before come first, whose positions are smaller
        order = np.argsort(_sort_keys(rows, similarities), kind="stable")
        rows = rows[order]
        ranks = np.arange(len(rows)) - np.searchsorted(rows, rows)  # in its row
        order, rows, ranks = (some[ranks < self._k] for some in (order, rows, ranks))
        self._positions[rows, ranks] = positions[order]
        self._similarities[rows, ranks] = similarities[order]
        np.maximum(self.bounds, self._similarities[:, -1], out=self.bounds)


def _sort_keys(rows: Indices, similarities: FloatArray) -> npt.NDArray[np.uint64]:
    """Return numbers [n] in the order of rows, then of falling similarities: one key is sorted in half the time of two.

    The bits of floats that are positive are in their order, those of negative ones in the reverse order.
    """
    bits = (similarities + np.float32(0)).view(np.uint32)  # -0 becomes 0
    falling = np.where(bits >> 31 == 0, bits ^ np.uint32(0x7FFFFFFF), bits)
    keys: npt.NDArray[np.uint64] = (rows.astype(np.uint64) << np.uint64(32)) | falling.astype(np.uint64)
    return keys
