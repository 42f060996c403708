from importlib import import_module

import numpy as np
import pytest

from fastvec.evaluation.bootstrap import SEED, bootstrap
from fastvec.evaluation.similarity import correlation
from fastvec.training.scored_pairs import spearman

scipy_stats = import_module("scipy.stats")


def values(ties: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 60))
    y = y + x
    return (np.round(x), np.round(y)) if ties else (x, y)


@pytest.mark.parametrize("ties", [False, True])
def test_value_is_that_of_scipy(ties: bool) -> None:
    x, y = values(ties)
    (found,) = bootstrap(len(x), correlation(x, y))
    assert found.value == pytest.approx(scipy_stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found.value == pytest.approx(spearman(x, y), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_samples_are_correlations_of_resampled_pairs(ties: bool) -> None:
    x, y = values(ties)
    (found,) = bootstrap(len(x), correlation(x, y))
    random = np.random.default_rng(SEED)
    drawn = [random.integers(len(x), size=len(x)) for _ in found.samples]
    assert found.samples == pytest.approx([spearman(x[one], y[one]) for one in drawn], abs=1e-12)


def test_what_is_constant_ranks_nothing() -> None:
    (found,) = bootstrap(5, correlation(np.ones(5), np.arange(5.0)))
    assert found.value == 0
    assert found.interval == (0, 0)
