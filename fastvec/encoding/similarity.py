"""Compares vectors as sentence-transformers does, by one of its four functions.

Shapes: n and m vectors of D dimensions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastvec.checkpoints.sentence_transformers import Similarity
from fastvec.errors import UsageError

FloatArray = npt.NDArray[np.float32]

SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize: a zero vector stays zero


def similarities(a: Any, b: Any, function: Similarity) -> FloatArray:
    """Return the similarities [n, m] of `a` [n, D] and `b` [m, D] in float32; a distance is negative.

    `a` and `b` are arrays or tensors; one vector [D] is read as [1, D]. Raises UsageError for other shapes.
    """
    left, right = _matrix(a), _matrix(b)
    if left.shape[1] != right.shape[1]:
        raise UsageError(f"vectors of {left.shape[1]} and of {right.shape[1]} dimensions cannot be compared")
    if function == "cosine":
        return unit(left) @ unit(right).T
    if function == "dot":
        return left @ right.T
    return -(_euclidean(left, right) if function == "euclidean" else _manhattan(left, right))


def _matrix(vectors: Any) -> FloatArray:
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.detach().float().cpu().numpy()
    try:
        matrix = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError):
        raise UsageError(f"expected vectors as an array or tensor of numbers, got a {type(vectors).__name__}") from None
    if matrix.ndim not in (1, 2):
        raise UsageError(f"expected vectors of shape [D] or [n, D], got an array of {matrix.ndim} dimensions")
    return np.atleast_2d(matrix)


def unit(vectors: FloatArray) -> FloatArray:
    """Return `vectors` [n, D] at length 1; a zero vector stays zero."""
    norms: FloatArray = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(norms, SMALLEST_NORM)).astype(np.float32, copy=False)


def _euclidean(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the distances [n, m], computed by one matrix product: in float64, because close vectors cancel."""
    wide, others = a.astype(np.float64), b.astype(np.float64)
    squares: npt.NDArray[np.float64] = (wide**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2 * (wide @ others.T)
    return np.sqrt(np.maximum(squares, 0)).astype(np.float32)


def _manhattan(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.array([np.abs(vector - b).sum(axis=1) for vector in a], dtype=np.float32).reshape(len(a), len(b))
