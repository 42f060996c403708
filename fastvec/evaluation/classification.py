"""Classification by the nearest neighbour: a text has the label of the most similar training text.

Shapes: m test texts, c labels, s resamples.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fastvec.evaluation.bootstrap import Array, Measured, Statistic, bootstrap
from fastvec.evaluation.contestants import Contestant


@dataclass(frozen=True, kw_only=True, slots=True)
class Labeled:
    """Texts, and the label of each."""

    texts: list[str]
    labels: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Classification:
    """Training texts, of at least two labels, and test texts."""

    kind: ClassVar[str] = "classification"
    measures: ClassVar[tuple[str, ...]] = ("accuracy", "macro F1")
    name: str
    train: Labeled
    test: Labeled
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        labels = len(set(self.train.labels))
        return f"{len(self.train.texts):,} training and {len(self.test.texts):,} test texts, {labels:,} labels"

    def judge(self, contestant: Contestant) -> dict[str, Measured]:
        nearest = contestant.nearest(self.test.texts, self.train.texts)
        found = np.array(self.train.labels)[nearest]
        statistic = accuracy_and_f1(np.array(self.test.labels), found)
        return dict(zip(self.measures, bootstrap(len(found), statistic), strict=True))


def accuracy_and_f1(wanted: npt.NDArray[np.str_], found: npt.NDArray[np.str_]) -> Statistic:
    """Return the statistic [s, 2] of the share of right labels and the mean of the labels' F1, over labels [m].

    A label that a resample has neither as wanted nor as found does not count, as in scikit-learn.
    """
    _, both = np.unique(np.concatenate([wanted, found]), return_inverse=True)
    true, guess = both[: len(wanted)], both[len(wanted) :]
    right = (true == guess).astype(np.float64)
    size = int(both.max()) + 1

    def of_one(counts: Array) -> tuple[float, float]:
        hits = np.bincount(true, weights=counts * right, minlength=size)
        there = np.bincount(true, weights=counts, minlength=size) + np.bincount(guess, weights=counts, minlength=size)
        return float(hits.sum() / counts.sum()), float((2 * hits[there > 0] / there[there > 0]).mean())

    return lambda counts: np.array([of_one(one) for one in counts])
