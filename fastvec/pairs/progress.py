"""Counts the pairs of rows that were compared."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, kw_only=True, slots=True)
class PairProgress:
    """The progress of a comparison of all rows: pairs compared, in `seconds`."""

    pairs: int
    total: int
    seconds: float

    @property
    def share(self) -> tuple[int, int]:
        """How much is done, of how much."""
        return self.pairs, self.total

    def __str__(self) -> str:
        """One line: the share of pairs compared, the rate and the time left."""
        rate = self.pairs / max(self.seconds, 1e-9)
        left = timedelta(seconds=round((self.total - self.pairs) / max(rate, 1e-9)))
        share = self.pairs / max(self.total, 1)
        return f"{share:.0%} of {self.total:,} pairs of rows, {rate / 1e6:,.1f} million/s, {left} left"


class PairCounter:
    """Adds up the pairs compared, and shows the progress."""

    def __init__(self, total: int, show: Callable[[PairProgress], None]) -> None:
        self._total, self._show = total, show
        self._pairs, self._started = 0, time.perf_counter()

    def add(self, pairs: int) -> None:
        """Count `pairs` more; half of those on the diagonal are counted twice."""
        self._pairs = min(self._pairs + pairs, self._total)
        self._show(PairProgress(pairs=self._pairs, total=self._total, seconds=time.perf_counter() - self._started))
