"""Tasks of texts with labels: classification by the nearest neighbour, and clustering.

A test text has the label of the most similar training text. The clusters are those of scikit-learn's MiniBatchKMeans
with the options of mteb's clustering tasks, as many as there are labels; V-measure is the harmonic mean of homogeneity
and completeness (Rosenberg and Hirschberg, 2007).

Shapes: n texts, D dimensions, m test texts, s resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastvec.evaluation.bootstrap import Array, Measured, Statistic, bootstrap
from fastvec.evaluation.contestants import Contestant

SEEDS = 10
BATCH = 512  # as mteb


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Clustering:
    """Texts of at least two labels. The samples of its score are those of the seeds, not of resampled texts."""

    kind: ClassVar[str] = "clustering"
    measures: ClassVar[tuple[str, ...]] = ("V-measure",)
    name: str
    data: Labeled
    notes: tuple[str, ...] = (f"± over {SEEDS} seeds of k-means",)

    @property
    def size(self) -> str:
        return f"{len(self.data.texts):,} texts, {len(set(self.data.labels)):,} labels"

    def judge(self, contestant: Contestant) -> dict[str, Measured]:
        vectors, _ = contestant.vectors(self.data.texts, [])
        scores = v_measures(vectors, self.data.labels)
        return {self.measures[0]: Measured(float(scores.mean()), scores)}


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


def v_measures(vectors: Any, labels: Sequence[str], seeds: Sequence[int] = range(SEEDS)) -> Array:
    """Return the V-measure [seeds] of the clusters that k-means finds in `vectors` [n, D] from each seed."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    count = len(set(labels))
    found = [
        MiniBatchKMeans(count, batch_size=BATCH, init="k-means++", n_init=1, random_state=seed).fit_predict(vectors)
        for seed in seeds
    ]
    return np.array([v_measure_score(labels, one) for one in found])
