from importlib import import_module

import numpy as np
import pytest

from fastvec.evaluation import top_k as module
from fastvec.evaluation.top_k import top_k


@pytest.mark.parametrize("kind", ["array", "sparse"])
@pytest.mark.parametrize("k", [1, 3, 40, 90])
def test_blocks_find_what_a_full_sort_finds(k: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small integers have exact products, many of them equal: those are in the order of their rows."""
    monkeypatch.setattr(module, "BLOCK_SCORES", 64)
    monkeypatch.setattr(module, "BLOCK_QUERIES", 7)
    random = np.random.default_rng(0)
    queries, documents = (random.integers(-2, 3, size=(n, 4)).astype(np.float32) for n in (15, 53))
    expected = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :k]
    made = import_module("scipy.sparse").csr_matrix if kind == "sparse" else np.asarray
    scores, rows = top_k(made(queries), made(documents), k)
    assert (rows == expected).all()
    assert (scores == np.take_along_axis(queries @ documents.T, expected, axis=1)).all()
    assert scores.dtype == np.float32
