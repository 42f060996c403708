"""Exact search by matrix products, in blocks that bound the memory.

Shapes: q queries, n documents, D dimensions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp]

BLOCK_SCORES = 1 << 22  # of a product: 16 MiB
BLOCK_QUERIES = 256


def top_k(queries: Any, documents: Any, k: int) -> tuple[Scores, Rows]:
    """Return the scores and rows [q, min(k, n)] of the documents with the largest dot products, best first.

    `queries` [q, D] and `documents` [n, D] are arrays, or sparse matrices in CSR format. Of documents with the same
    score, the earlier is first.
    """
    found = [
        _of_block(queries[at : at + BLOCK_QUERIES], documents, k) for at in range(0, queries.shape[0], BLOCK_QUERIES)
    ]
    return np.concatenate([scores for scores, _ in found]), np.concatenate([rows for _, rows in found])


def _of_block(queries: Any, documents: Any, k: int) -> tuple[Scores, Rows]:
    step = max(BLOCK_SCORES // queries.shape[0], k)
    scores = np.empty((queries.shape[0], 0), dtype=np.float32)
    rows = np.empty((queries.shape[0], 0), dtype=np.intp)
    for begin in range(0, documents.shape[0], step):
        product = queries @ documents[begin : begin + step].T
        block = np.asarray(product if isinstance(product, np.ndarray) else product.toarray(), dtype=np.float32)
        best = _best(block, k)
        scores = np.concatenate([scores, np.take_along_axis(block, best, axis=1)], axis=1)
        rows = np.concatenate([rows, best + begin], axis=1)
        best = _best(scores, k)  # an earlier block's documents come first, so the order of equal scores is kept
        scores, rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
    return scores, rows


def _best(scores: Scores, k: int) -> Rows:
    """Return the columns of the k largest scores of each row, the largest first; equal ones by their column."""
    if scores.shape[1] <= k:
        return np.argsort(-scores, axis=1, kind="stable")
    kth = np.partition(scores, -k, axis=1)[:, -k]
    best = np.empty((len(scores), k), dtype=np.intp)
    for own, row, least in zip(best, scores, kth, strict=True):
        columns = np.flatnonzero(row >= least)  # more than k, if several have the k-th score
        own[:] = columns[np.argsort(-row[columns], kind="stable")[:k]]
    return best
