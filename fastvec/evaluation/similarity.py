"""Semantic textual similarity: Spearman's correlation of the similarity of pairs with human scores.

Shapes: n pairs, s resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fastvec.evaluation.bootstrap import Array, Measured, Statistic, bootstrap
from fastvec.evaluation.contestants import Contestant
from fastvec.training.scored_pairs import ScoredPairs


@dataclass(frozen=True, kw_only=True, slots=True)
class Similarity:
    """Pairs of texts with scores on any scale, which are not all equal."""

    kind: ClassVar[str] = "similarity"
    measures: ClassVar[tuple[str, ...]] = ("Spearman",)
    name: str
    pairs: ScoredPairs
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        return f"{len(self.pairs.scores):,} pairs"

    def judge(self, contestant: Contestant) -> dict[str, Measured]:
        found = contestant.similarities(self.pairs.first, self.pairs.second)
        return dict(zip(self.measures, bootstrap(len(found), correlation(found, self.pairs.scores)), strict=True))


def correlation(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> Statistic:
    """Return the statistic [s, 1] that is Spearman's correlation of `x` [n] and `y` [n].

    It is Pearson's correlation of the ranks; tied values share their mean rank. It is 0 where `x` or `y` is constant.
    """
    of_x, of_y = _ranks(x), _ranks(y)
    middle = (len(x) + 1) / 2  # the mean of all ranks

    def statistic(counts: Array) -> Array:
        first, second = of_x(counts) - middle, of_y(counts) - middle
        spread = np.sqrt((counts * first**2).sum(axis=1) * (counts * second**2).sum(axis=1))
        together = (counts * first * second).sum(axis=1)
        found: Array = np.divide(together, spread, out=np.zeros_like(spread), where=spread > 0)
        return found[:, None]

    return statistic


def _ranks(values: npt.NDArray[np.floating]) -> Callable[[Array], Array]:
    """Return the function from counts [s, n] to the mean ranks [s, n] of `values`, each there as often as it counts."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    begins = np.cumsum(sizes) - sizes

    def ranks(counts: Array) -> Array:
        drawn = np.add.reduceat(counts[:, order], begins, axis=1)
        return np.asarray((np.cumsum(drawn, axis=1) - (drawn - 1) / 2)[:, group])

    return ranks
