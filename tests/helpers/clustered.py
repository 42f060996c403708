"""Outputs of vectors around some centers, from the real writer."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.helpers import vectors as in_batches

DIMS = 16
Floats = npt.NDArray[np.float32]


def clustered(rows: int, *, seed: int = 0, unit: bool = True) -> Floats:
    """Vectors around 50 centers, of lengths from 0.5 to 2 or of length 1."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((50, DIMS))[random.integers(0, 50, rows)]
    vectors += random.standard_normal((rows, DIMS)) / 2
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors if unit else vectors * random.uniform(0.5, 2, (rows, 1))).astype(np.float32)


def write_vectors(path: Path, vectors: Floats, **options: Any) -> Path:
    """Write a finished output in one record batch; see `vectors.write_vectors` for the options."""
    in_batches.write_vectors(path, vectors, batch_rows=max(len(vectors), 1), **options)
    return path
