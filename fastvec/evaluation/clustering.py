"""Clustering: how well the clusters of k-means agree with labels.

The clusters are those of scikit-learn's MiniBatchKMeans with the options of mteb's clustering tasks, as many as there
are labels. V-measure is the harmonic mean of homogeneity and completeness (Rosenberg and Hirschberg, 2007).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastvec.evaluation.bootstrap import Array, Measured
from fastvec.evaluation.classification import Labeled
from fastvec.evaluation.contestants import Contestant

SEEDS = 10
BATCH = 512  # as mteb


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
