"""Exact search against a search that compares everything at once, in float64."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fastvec import convert
from fastvec.checkpoints.sentence_transformers import Similarity
from fastvec.output.vector_column import VectorDtype
from fastvec.retrieval import exact
from fastvec.retrieval.exact import NONE, best_rows, block_rows
from fastvec.retrieval.scoring import BIT_QUERIES, GPU_QUERIES, ProductsOnGpu
from fastvec.vectors.stored import Vectors, open_vectors
from tests.helpers.vectors import random_vectors, write_vectors

DIMS, ROWS, K = 16, 400, 5
FUNCTIONS: list[Similarity] = ["cosine", "dot", "euclidean", "manhattan"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare few rows at a time, so that a search takes many blocks."""
    monkeypatch.setattr(exact, "FEWEST_ROWS", 13)
    monkeypatch.setattr(exact, "SCORE_BYTES", 1)


def all_scores(queries: npt.NDArray[np.float32], rows: npt.NDArray[np.float32], function: Similarity) -> np.ndarray:
    """Return the similarities [q, n] by their definitions, in float64."""
    left, right = queries.astype(np.float64), rows.astype(np.float64)
    if function == "cosine":
        left, right = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (left, right))
        return np.array(left @ right.T)
    if function == "dot":
        return np.array(left @ right.T)
    order = 2 if function == "euclidean" else 1
    return np.array([-np.linalg.norm(right - query, ord=order, axis=1) for query in left])


def assert_best(found: exact.Best, scores: np.ndarray, k: int) -> None:
    """Check that `found` are the best by `scores` [q, n], up to the rounding of float32 sums of DIMS terms."""
    tolerance = (DIMS + 2) * 2**-23 * max(np.abs(scores[np.isfinite(scores)]).max(initial=1), 1)
    best = -np.sort(-scores, axis=1)[:, :k]
    best = np.pad(best, [(0, 0), (0, k - best.shape[1])], constant_values=-np.inf)
    np.testing.assert_allclose(found.scores, best, atol=tolerance)
    there = np.isfinite(best)
    assert np.array_equal(found.positions != NONE, there)
    own = np.take_along_axis(scores, np.maximum(found.positions, 0), axis=1)
    np.testing.assert_allclose(found.scores[there], own[there], atol=tolerance)
    for positions in found.positions:
        assert len(np.unique(positions[positions != NONE])) == np.count_nonzero(positions != NONE)


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_best_rows_are_found(tmp_path: Path, function: Similarity, dtype: VectorDtype, suffix: str) -> None:
    missing = (3, 200, 399)
    given = random_vectors(ROWS, DIMS) * np.float32(1 if function == "cosine" else 3)
    path = tmp_path / "vecs.arrow"
    stored = write_vectors(path, given, dtype=dtype, normalize=False, missing=missing)
    if suffix == ".parquet":
        convert(path, path.with_suffix(suffix))
    queries = random_vectors(7, DIMS, seed=1) * np.float32(2)
    scores = all_scores(queries, stored, function)
    scores[:, missing] = -np.inf
    with open_vectors([path.with_suffix(suffix)]) as vectors:
        assert_best(best_rows(vectors, queries, K, function=function), scores, K)
        assert_best(best_rows(vectors, queries[:1], K, function=function), scores[:1], K)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_rows_that_were_normalized_are_compared_as_they_are_stored(tmp_path: Path, dtype: VectorDtype) -> None:
    stored = write_vectors(tmp_path / "a.arrow", random_vectors(ROWS, DIMS), dtype=dtype)
    queries = random_vectors(7, DIMS, seed=1)
    with open_vectors([tmp_path / "a.arrow"]) as vectors:
        assert_best(best_rows(vectors, queries, K), all_scores(queries, stored, "dot"), K)


def test_binary_rows_are_chosen_by_bits_and_scored_by_values(tmp_path: Path) -> None:
    stored = write_vectors(tmp_path / "a.arrow", random_vectors(ROWS, DIMS), dtype="binary", missing=(7,))
    queries = random_vectors(BIT_QUERIES - 1, DIMS, seed=1)
    bits = all_scores(np.sign(queries), stored, "dot")  # D - 2 · differing bits
    values = all_scores(queries, stored, "cosine")
    bits[:, 7] = -np.inf
    with open_vectors([tmp_path / "a.arrow"]) as vectors:
        found = best_rows(vectors, queries, K)
    for query in range(len(queries)):
        chosen = np.lexsort((np.arange(ROWS), -bits[query]))[: 10 * K]  # of equal ones, the first
        best = chosen[np.argsort(-values[query, chosen], kind="stable")][:K]
        np.testing.assert_allclose(found.scores[query], values[query, best], atol=(DIMS + 2) * 2**-23)
        assert set(found.positions[query]) <= set(chosen)


def test_many_queries_compare_all_binary_rows_by_values(tmp_path: Path) -> None:
    stored = write_vectors(tmp_path / "a.arrow", random_vectors(ROWS, DIMS), dtype="binary", missing=(7,))
    queries = random_vectors(BIT_QUERIES, DIMS, seed=1)
    scores = all_scores(queries, stored, "cosine")
    scores[:, 7] = -np.inf
    with open_vectors([tmp_path / "a.arrow"]) as vectors:
        assert_best(best_rows(vectors, queries, K), scores, K)


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    k=st.integers(1, 60),
    levels=st.integers(1, 3),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
@hypothesis_settings(max_examples=25)
def test_of_equal_rows_the_first_ones_are_found(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], k: int, levels: int, masked: bool, seed: int
) -> None:
    """Vectors with few different values, whose sums are exact, so that many rows are exactly as good as others."""
    random = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("equal")
    stored = []
    for number, rows in enumerate(sizes):
        some = random.integers(-levels, levels + 1, size=(rows, 8)).astype(np.float32)
        stored.append(write_vectors(folder / f"{number}.arrow", some, normalize=False, batch_rows=11))
    rows_, queries = np.concatenate(stored), random.integers(-2, 3, size=(3, 8)).astype(np.float32)
    mask = random.random(len(rows_)) < 0.5 if masked else None
    with open_vectors([folder / f"{number}.arrow" for number in range(len(sizes))]) as vectors:
        found = best_rows(vectors, queries, k, function="dot", mask=mask)
    scores = queries @ rows_.T
    for query in range(3):
        order = [row for row in np.argsort(-scores[query], kind="stable") if mask is None or mask[row]][:k]
        assert found.positions[query].tolist() == order + [NONE] * (k - len(order))
        assert found.scores[query].tolist() == [*scores[query, order], *[-np.inf] * (k - len(order))]


@pytest.mark.parametrize("where", [0, 200, 399])
def test_a_row_that_is_not_a_number_is_never_found(tmp_path: Path, where: int) -> None:
    given = random_vectors(ROWS, DIMS)
    given[where, 3] = np.nan
    write_vectors(tmp_path / "a.arrow", given)
    queries = random_vectors(3, DIMS, seed=1)
    scores = all_scores(queries, np.nan_to_num(given), "cosine")
    scores[:, where] = -np.inf
    with open_vectors([tmp_path / "a.arrow"]) as vectors:
        assert_best(best_rows(vectors, queries, K), scores, K)


def test_progress_counts_rows_to_the_end(tmp_path: Path) -> None:
    write_vectors(tmp_path / "a.arrow", random_vectors(100))
    seen: list[int] = []
    with open_vectors([tmp_path / "a.arrow"]) as vectors:
        best_rows(vectors, random_vectors(2), 3, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 100


def test_the_products_for_a_gpu_are_the_same_on_torch(tmp_path: Path) -> None:
    write_vectors(tmp_path / "a.arrow", random_vectors(ROWS, DIMS))
    queries = random_vectors(GPU_QUERIES, DIMS, seed=1)
    with open_vectors([tmp_path / "a.arrow"]) as vectors:
        scoring = ProductsOnGpu(vectors, queries, normalize=False, device="cpu")
        (block,) = list(vectors.blocks(ROWS))[:1]
        np.testing.assert_allclose(
            scoring.keys(block, None), queries @ vectors.floats(block).T, atol=(DIMS + 2) * 2**-23
        )


def test_blocks_are_bounded_in_bytes_of_rows_and_of_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    write_vectors(tmp_path / "a.arrow", random_vectors(8, 1024))
    with open_vectors([tmp_path / "a.arrow"]) as vectors:
        for queries in (1, 100, 4096):
            rows = block_rows(vectors, queries)
            assert rows * 1024 * 4 <= exact.BLOCK_BYTES
            assert rows * queries * 4 <= exact.SCORE_BYTES
        assert isinstance(vectors, Vectors)
        assert block_rows(vectors, 1_000_000) == exact.FEWEST_ROWS
