"""Measures an embedding job for its report: rates over time, work of stages, lengths of sequences, norms of vectors.

What is kept does not grow with the corpus: at most `POINTS` points in time, a count for each length up to the longest
sequence, and a count for each of `len(NORM_EDGES) + 1` ranges of norms.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastvec.output.vector_column import FloatArray
from fastvec.report import Progress

POINTS = 500
# from 1e-6 to 1e6, 0.05 % apart: the norms of models that do not normalize are from about 1 to some hundreds
NORM_EDGES = np.exp(np.arange(np.log(1e-6), np.log(1e6), 5e-4))


class Point(NamedTuple):
    """How far a job was after `seconds`: the rows and tokens of this process."""

    seconds: float
    rows: int
    tokens: int


class Measurements:
    """What is known of a job beyond its totals. Everything is of this process alone.

    Attributes:
        busy: The seconds that each stage worked; empty if other processes embed the shards.
        sequences: The number of sequences that were encoded, by their tokens [longest + 1].
        norms: The number of vectors [len(NORM_EDGES) + 1] below, between and above `NORM_EDGES`.
        norm_sum, norm_range: The sum of the norms, and the smallest and largest one.
    """

    def __init__(self) -> None:
        self.busy: dict[str, float] = {}
        self.sequences = np.zeros(1, dtype=np.int64)
        self.norms = np.zeros(len(NORM_EDGES) + 1, dtype=np.int64)
        self.norm_sum, self.norm_range = 0.0, (np.inf, 0.0)
        self._points = [Point(0.0, 0, 0)]
        self._latest = self._points[0]
        self._interval = 0.0  # seconds between two points

    @property
    def points(self) -> list[Point]:
        """The points in time, from the start to the latest one."""
        return self._points if self._latest == self._points[-1] else [*self._points, self._latest]

    @property
    def vectors(self) -> int:
        """The number of vectors whose norms were taken."""
        return int(self.norms.sum())

    def watching(self, show: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Return a function that notes a job's progress before it calls `show`."""

        def watch(progress: Progress) -> None:
            self.add_progress(progress)
            show(progress)

        return watch

    def add_progress(self, progress: Progress) -> None:
        self._latest = Point(progress.seconds, progress.new_rows, progress.tokens)
        if self._latest.seconds - self._points[-1].seconds < self._interval:
            return
        self._points.append(self._latest)
        if len(self._points) >= POINTS:  # each point that stays stands for two
            self._points = self._points[::2]
            self._interval = 2 * self._latest.seconds / POINTS

    def add_chunk(self, lengths: npt.NDArray[np.integer], vectors: FloatArray) -> None:
        """Count the sequences of a chunk by their tokens [s], and its `vectors` [n, D] by their norms."""
        counts = np.bincount(lengths, minlength=len(self.sequences))
        counts[: len(self.sequences)] += self.sequences
        self.sequences = counts
        if len(vectors):
            # in float64, because a sum of squares in float32 ends at norms of 1.8e19
            norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
            self.norms += np.bincount(np.searchsorted(NORM_EDGES, norms), minlength=len(self.norms))
            self.norm_sum += float(norms.sum())
            least, most = self.norm_range
            self.norm_range = min(least, float(norms.min())), max(most, float(norms.max()))

    def add_work(self, busy: Mapping[str, float]) -> None:
        """Add the seconds that each stage of a run worked; a job in shards has several runs."""
        for stage, seconds in busy.items():
            self.busy[stage] = self.busy.get(stage, 0.0) + seconds
