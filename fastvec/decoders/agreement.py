"""How near the vectors of a quantised forward come to those it stands for, and whether that is near enough.

Shapes: n texts, D dimensions of a vector.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastvec.errors import ModelError

FloatArray = npt.NDArray[np.float32]

SAMPLE = 256  # texts that are compared
NEIGHBOURS = 10
LEAST_TEXTS = 100  # of fewer, the nearest ones are a matter of chance
LEAST_COSINE, LEAST_OVERLAP = 0.99, 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """`cosine` is the 1st percentile over the texts; `overlap` the share of each text's nearest ten that stay so."""

    texts: int
    cosine: float
    overlap: float | None  # None where the texts are too few

    @classmethod
    def of(cls, expected: FloatArray, found: FloatArray) -> "Agreement":
        """Of the vectors [n, D] of the same texts, n at least 1; those that are not finite are left out."""
        finite = np.isfinite(expected).all(axis=1) & np.isfinite(found).all(axis=1)
        expected, found = (_normalized(vectors[finite]) for vectors in (expected, found))
        cosines = (expected * found).sum(axis=1)
        overlap = _overlap(expected, found) if len(expected) >= LEAST_TEXTS else None
        return cls(
            texts=len(expected), cosine=float(np.quantile(cosines, 0.01)) if len(cosines) else 1.0, overlap=overlap
        )

    def require(self, quantize: str, dtype: str) -> None:
        """Raises ModelError where the two are not near enough."""
        if self.cosine < LEAST_COSINE or (self.overlap is not None and self.overlap < LEAST_OVERLAP):
            raise ModelError(
                f"{quantize} turns this model's vectors too far, {self}, against {dtype}: needed are {LEAST_COSINE} "
                f"and {LEAST_OVERLAP:.0%}; leave quantize out"
            )

    def __str__(self) -> str:
        shared = "" if self.overlap is None else f" and {self.overlap:.1%} of the nearest {NEIGHBOURS} the same"
        return f"1st percentile of the cosine {self.cosine:.4f}{shared} on {self.texts} texts"


def _normalized(vectors: FloatArray) -> FloatArray:
    norms: FloatArray = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return vectors / norms


def _overlap(expected: FloatArray, found: FloatArray) -> float:
    """The mean share of a text's nearest neighbours by `expected` that are so by `found` too."""
    nearest = []
    for vectors in (expected, found):
        similarity = vectors @ vectors.T
        np.fill_diagonal(similarity, -np.inf)
        chosen = np.argpartition(-similarity, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        among = np.zeros(similarity.shape, dtype=bool)
        np.put_along_axis(among, chosen, True, axis=1)
        nearest.append(among)
    return float((nearest[0] & nearest[1]).sum() / (len(expected) * NEIGHBOURS))
