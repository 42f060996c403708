"""The measure of an approximate index: which vectors are its queries, and what counts as found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastvec.retrieval import exact
from fastvec.retrieval.recall import SEARCHED, Neighbours, PresentVectors, least_effort
from fastvec.vectors.stored import open_vectors
from tests.helpers.clustered import DIMS, clustered, write_vectors


def test_vectors_are_read_in_blocks_and_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK_BYTES", 300 * 4 * DIMS)
    written = clustered(800)
    with open_vectors([write_vectors(tmp_path / "v.arrow", written, missing=(0, 300, 799))]) as vectors:
        present = PresentVectors.of(vectors, "cosine")
        blocks = list(present.blocks())
        sampled, values = present.sample(100)
        everything = present.sample(1000)[0]
    positions = np.concatenate([positions for positions, _ in blocks])
    assert [len(values) for _, values in blocks] == [266, 266, 265]
    assert positions.tolist() == everything.tolist() == [row for row in range(800) if row not in (0, 300, 799)]
    assert np.array_equal(np.concatenate([values for _, values in blocks]), written[positions])
    assert set(np.diff(sampled)) <= {7, 8, 9}  # 797 / 100, and one more over a row without a vector
    assert np.array_equal(values, written[sampled])


def test_rows_that_are_equally_near_are_all_right(tmp_path: Path) -> None:
    """20 times each of 60 vectors, and one of them 400 times."""
    distinct = clustered(60)
    path = write_vectors(
        tmp_path / "v.arrow", np.concatenate([np.tile(distinct, (20, 1)), np.tile(distinct[:1], (380, 1))])
    )
    with open_vectors([path]) as vectors:
        neighbours = Neighbours.of(PresentVectors.of(vectors, "cosine"))

    of = neighbours.positions % 60
    assert 0 not in of  # whose 400 duplicates are too many to be listed
    assert len(of) > 50
    others = (of[:, None] + 60 * np.arange(19, 19 - SEARCHED, -1)).astype(np.int64)  # not those that exact search finds
    assert neighbours.recall(others) == 1.0
    half = others.copy()
    half[:, 5:] = -1
    assert 0.4 <= neighbours.recall(half) <= 0.5  # a row may be its own neighbour, which does not count
    assert neighbours.recall(others - 1) == 0.0


def test_effort_is_raised_until_the_recall_is_enough() -> None:
    tried: list[int] = []

    def measure(recalls: dict[int, float]) -> Callable[[int], float]:
        return lambda setting: tried.append(setting) or recalls[setting]  # type: ignore[func-returns-value]

    assert least_effort(16, 256, measure({16: 0.9, 32: 0.98, 64: 0.991})) == (64, 0.991)
    assert tried == [16, 32, 64]
    assert least_effort(1, 8, measure({1: 0.5, 2: 0.97, 4: 0.9705, 8: 0.9707})) == (2, 0.97)
