"""Bootstrap intervals: a score of resamples of the items (pairs, queries, texts), drawn with replacement.

A score is a function of how often each item is drawn. The seed is fixed, so two models with as many items have the same
resamples, and their difference has an interval too (the paired bootstrap of Efron and Tibshirani, 1993).

Shapes: m items, S resamples, k measures.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# from how often each item is drawn [s, m], in s resamples, to the scores [s, k]
Statistic = Callable[[Array], Array]

SAMPLES = 1000
SEED = 0
BLOCK_VALUES = 1 << 20  # of the resamples that are scored together: 8 MiB


@dataclass(frozen=True, slots=True)
class Measured:
    """A score, and the same score of each resample [S]."""

    value: float
    samples: Array

    @property
    def interval(self) -> tuple[float, float]:
        """The 2.5 % and 97.5 % quantiles of the resamples' scores."""
        low, high = np.quantile(self.samples, [0.025, 0.975]).tolist()
        return low, high

    def minus(self, other: "Measured") -> "Measured":
        return Measured(self.value - other.value, self.samples - other.samples)


def bootstrap(items: int, statistic: Statistic) -> list[Measured]:
    """Return each of the k measures of `statistic` with its resamples."""
    random = np.random.default_rng(SEED)
    values = statistic(np.ones((1, items)))[0]
    step = max(BLOCK_VALUES // items, 1)
    samples = []
    for begin in range(0, SAMPLES, step):
        drawn = [random.integers(items, size=items) for _ in range(min(step, SAMPLES - begin))]
        samples.append(statistic(np.array([np.bincount(one, minlength=items) for one in drawn], dtype=np.float64)))
    columns = np.concatenate(samples).T
    return [Measured(float(value), column) for value, column in zip(values, columns, strict=True)]


def means(items: Array) -> Statistic:
    """Return the statistic that is the mean of each column of `items` [m, k]."""
    return lambda counts: counts @ items / len(items)
