import numpy as np
import pytest

from fastvec.evaluation.bootstrap import SAMPLES, SEED, Measured, bootstrap, means


@pytest.mark.parametrize("items", [2, 700, 3000])  # 3000: in several blocks
def test_samples_are_the_means_of_resampled_items(items: int) -> None:
    values = np.random.default_rng(1).normal(size=(items, 2))
    first, second = bootstrap(items, means(values))
    random = np.random.default_rng(SEED)
    expected = np.array([values[random.integers(items, size=items)].mean(axis=0) for _ in range(SAMPLES)])
    assert np.stack([first.samples, second.samples], axis=1) == pytest.approx(expected, abs=1e-12)
    assert (first.value, second.value) == pytest.approx(tuple(values.mean(axis=0)))


def test_interval_covers_the_mean_as_often_as_theory_says() -> None:
    """The standard error of the mean of n items is σ/√n, so the interval is 2 · 1.96 σ/√n wide.

    The quantiles of 1,000 samples have a standard error of 0.085 σ/√n each (√(p(1-p)/S) over the normal density):
    five of them, and of both ends, are 0.6 σ/√n. For 400 values that are 0 or 1 equally often σ is 0.5.
    """
    ((low, high),) = [one.interval for one in bootstrap(400, means(np.repeat([[0.0], [1.0]], 200, axis=0)))]
    error = 0.5 / np.sqrt(400)
    assert high - low == pytest.approx(2 * 1.96 * error, abs=0.6 * error)
    assert low < 0.5 < high


def test_difference_is_paired() -> None:
    values = np.random.default_rng(1).normal(size=(50, 1))
    (one,), (more,) = bootstrap(50, means(values)), bootstrap(50, means(values + 0.25))
    difference = more.minus(one)
    assert isinstance(difference, Measured)
    assert difference.interval == pytest.approx((0.25, 0.25))
