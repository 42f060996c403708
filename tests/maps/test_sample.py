from pathlib import Path

import numpy as np
import pytest

from fastvec.maps.sample import drawn_ranks, read_sample
from fastvec.vectors.stored import open_vectors
from tests.maps.outputs import random_vectors, write_vectors


@pytest.mark.parametrize(("total", "limit"), [(1000, 10), (1003, 10), (11, 10), (10, 10), (3, 10), (0, 10)])
def test_one_of_each_run_is_drawn(total: int, limit: int) -> None:
    ranks = drawn_ranks(total, limit, seed=0)
    count = min(total, limit)
    bounds = np.arange(count + 1) * total // max(count, 1)
    assert len(ranks) == count
    assert (ranks >= bounds[:-1]).all()
    assert (ranks < bounds[1:]).all()


def test_another_seed_draws_others() -> None:
    assert drawn_ranks(1000, 10, seed=0).tolist() == drawn_ranks(1000, 10, seed=0).tolist()
    assert drawn_ranks(1000, 10, seed=0).tolist() != drawn_ranks(1000, 10, seed=1).tolist()


@pytest.mark.parametrize("limit", [100, 7])
def test_rows_without_a_vector_are_left_out(tmp_path: Path, limit: int) -> None:
    vectors = random_vectors(30)
    missing = {0, 4, 5, 13, 29}
    files = [
        write_vectors(tmp_path / "a.arrow", vectors[:12], missing=(0, 4, 5)),
        write_vectors(tmp_path / "b.arrow", vectors[12:], missing=(1, 17)),
    ]
    with open_vectors(files) as opened:
        sample = read_sample(opened, limit, seed=3)
    assert sample.rows_with_vector == 25
    assert len(sample.positions) == min(limit, 25)
    assert missing.isdisjoint(sample.positions.tolist())
    assert (np.diff(sample.positions) > 0).all()
    assert (sample.vectors == vectors[sample.positions]).all()
