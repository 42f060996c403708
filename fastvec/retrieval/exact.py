"""Finds the k best rows of each query among all vectors, block by block.

A row is compared with the k-th best found so far, so that after the first blocks few rows are sorted. Ties: the row
that comes first.

Shapes: q queries, D dimensions, b rows of a block, m candidates of a query.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastvec.checkpoints.sentence_transformers import Similarity
from fastvec.output.vector_column import FloatArray
from fastvec.retrieval.scoring import Scoring, scoring_for
from fastvec.vectors.stored import Block, Vectors

Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
BLOCK_BYTES = 16 << 20  # of the rows of a block, as float32
SCORE_BYTES = 16 << 20  # of the keys of a block
FEWEST_ROWS = 256
NONE = -1  # the position where fewer than k rows were found


@dataclass(frozen=True, slots=True)
class Best:
    """The best rows of each query, best first: their positions [q, k] and similarities [q, k].

    Where fewer than k rows have a vector, the position is -1 and the similarity -inf.
    """

    positions: Positions
    scores: FloatArray


def block_rows(vectors: Vectors, queries: int) -> int:
    """Return how many rows to compare with so many queries at a time."""
    by_bytes = BLOCK_BYTES // (4 * vectors.dims)
    return max(min(by_bytes, SCORE_BYTES // (4 * queries)), FEWEST_ROWS)


def best_rows(
    vectors: Vectors,
    queries: FloatArray,
    k: int,
    *,
    function: Similarity = "cosine",
    mask: Mask | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda _: None,
) -> Best:
    """Return the `k` best rows of each of `queries` [q, D] by a similarity function, exactly.

    One to three queries select ten times k binary vectors by bits first, and compare these by the query's values.
    `mask` [rows] is false for rows to leave out. `progress` is called with the number of rows compared so far. Raises
    OutputError if a file cannot be read.
    """
    scoring = scoring_for(vectors, queries, function, device)
    found = _Candidates(len(queries), k * scoring.oversampling)
    for block in vectors.blocks(block_rows(vectors, len(queries))):
        rows = _wanted(block, mask)
        if rows is None or len(rows):
            found.add(block, scoring, rows)
        progress(block.begin + len(block))
    return found.best(k)


def _wanted(block: Block, mask: Mask | None) -> npt.NDArray[np.intp] | None:
    """Return the rows of a block to compare; None for all."""
    wanted = block.valid
    if mask is not None:
        own = mask[block.begin : block.begin + len(block)]
        wanted = own if wanted is None else wanted & own
    return None if wanted is None or wanted.all() else np.flatnonzero(wanted)


class _Candidates:
    """The best m rows of each query so far, by keys, with their similarities."""

    def __init__(self, queries: int, size: int) -> None:
        self._size = size
        self._keys = np.full((queries, size), -np.inf, dtype=np.float32)
        self._scores = np.full((queries, size), -np.inf, dtype=np.float32)
        self._positions = np.full((queries, size), NONE, dtype=np.int64)

    def add(self, block: Block, scoring: Scoring, rows: npt.NDArray[np.intp] | None) -> None:
        """Take the rows of a block, or some of them, that are better than the worst of the m."""
        keys = scoring.keys(block, rows)
        better = keys > self._keys[:, -1:]
        count = int(np.count_nonzero(better))
        if count == 0:
            return
        if count > 2 * self._size * len(keys) and keys.shape[1] > self._size:
            better &= keys >= self._least(keys)
        places = np.flatnonzero(better)  # in a tenth of the time of np.nonzero, which returns both coordinates
        queries, columns = np.divmod(places, keys.shape[1])
        own_keys, own = keys.reshape(-1)[places], columns if rows is None else rows[columns]
        self._merge(queries, own_keys, scoring.scores(block, queries, own, own_keys), block.begin + own)

    def _least(self, keys: FloatArray) -> FloatArray:
        """Return the m-th largest key of each query [q, 1]; rows that equal it are all kept, for ties."""
        place = keys.shape[1] - self._size
        finite = np.where(np.isnan(keys), np.float32(-np.inf), keys)
        least: FloatArray = np.partition(finite, place, axis=1)[:, place : place + 1]
        return least

    def _merge(self, queries: npt.NDArray[np.intp], keys: FloatArray, scores: FloatArray, positions: Positions) -> None:
        """Merge new candidates [n], in the order of queries and positions, with those of the same queries."""
        changed, new_of = np.unique(queries, return_inverse=True)
        of = np.concatenate([np.repeat(np.arange(len(changed)), self._size), new_of])
        joined = np.concatenate([self._keys[changed].reshape(-1), keys])
        order = np.lexsort((-joined, of))  # stable: of equal keys, the earlier row is first
        starts = np.searchsorted(of[order], np.arange(len(changed)))
        first = order[starts[:, None] + np.arange(self._size)]
        self._keys[changed] = joined[first]
        self._scores[changed] = np.concatenate([self._scores[changed].reshape(-1), scores])[first]
        self._positions[changed] = np.concatenate([self._positions[changed].reshape(-1), positions])[first]

    def best(self, k: int) -> Best:
        order = np.argsort(-self._scores, axis=1, kind="stable")[:, :k]
        return Best(
            positions=np.take_along_axis(self._positions, order, axis=1),
            scores=np.take_along_axis(self._scores, order, axis=1),
        )
