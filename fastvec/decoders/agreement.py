"""Measure how closely a quantized forward reproduces the unquantized vectors, and reject one that is not close enough.

Shapes: n texts, D dimensions of a vector.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastvec.errors import ModelError

FloatArray = npt.NDArray[np.float32]

SAMPLE = 256  # texts to compare
NEIGHBOURS = 10
LEAST_TEXTS = 100  # with fewer texts, the share of equal neighbours is too noisy
LEAST_COSINE, LEAST_OVERLAP = 0.99, 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """`cosine`: 1st percentile over texts. `overlap`: mean share of a text's ten nearest neighbours that are kept.

    `speed` is the rate of the quantized forward relative to the unquantized one.
    """

    texts: int
    cosine: float
    overlap: float | None  # None with fewer than LEAST_TEXTS texts
    speed: float | None = None

    @classmethod
    def of(cls, expected: FloatArray, found: FloatArray) -> "Agreement":
        """Compare two sets of vectors [n, D] of the same texts, n ≥ 1, leaving out texts with a non-finite vector."""
        finite = np.isfinite(expected).all(axis=1) & np.isfinite(found).all(axis=1)
        expected, found = (_normalized(vectors[finite]) for vectors in (expected, found))
        cosines = (expected * found).sum(axis=1)
        overlap = _overlap(expected, found) if len(expected) >= LEAST_TEXTS else None
        return cls(
            texts=len(expected), cosine=float(np.quantile(cosines, 0.01)) if len(cosines) else 1.0, overlap=overlap
        )

    def require(self, quantize: str, dtype: str) -> None:
        """Raise ModelError if the cosine or the overlap is below its minimum."""
        if self.cosine < LEAST_COSINE or (self.overlap is not None and self.overlap < LEAST_OVERLAP):
            raise ModelError(
                f"{quantize} changes this model's vectors too much against {dtype}: {self}; required: {LEAST_COSINE} "
                f"and {LEAST_OVERLAP:.0%}; run without quantize"
            )

    def __str__(self) -> str:
        shared = "" if self.overlap is None else f" and {self.overlap:.1%} of the nearest {NEIGHBOURS} unchanged"
        return f"1st percentile of the cosine {self.cosine:.4f}{shared} on {self.texts} texts"


def _normalized(vectors: FloatArray) -> FloatArray:
    norms: FloatArray = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return vectors / norms


def _overlap(expected: FloatArray, found: FloatArray) -> float:
    """Return the mean share of a text's nearest neighbours by `expected` that are also nearest by `found`."""
    nearest = []
    for vectors in (expected, found):
        similarity = vectors @ vectors.T
        np.fill_diagonal(similarity, -np.inf)
        chosen = np.argpartition(-similarity, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        among = np.zeros(similarity.shape, dtype=bool)
        np.put_along_axis(among, chosen, True, axis=1)
        nearest.append(among)
    return float((nearest[0] & nearest[1]).sum() / (len(expected) * NEIGHBOURS))
