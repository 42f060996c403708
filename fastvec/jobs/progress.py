"""One view of the progress of a job whose shards are embedded at the same time."""

import time
from collections import defaultdict
from collections.abc import Callable

from fastvec.report import Progress
from fastvec.shards.receipts import Receipt


class JobProgress:
    """Adds up the progress of shards, in a time that does not depend on how many are embedded.

    `total_rows` are those of all shards that this run shall finish, `finished_rows` those that earlier runs finished.
    """

    def __init__(self, total_rows: int, finished_rows: int, show: Callable[[Progress], None]) -> None:
        self._total_rows, self._show, self._started = total_rows, show, time.perf_counter()
        self._rows, self._new_rows, self._tokens, self._errors = finished_rows, 0, 0, 0
        self._waits: defaultdict[str, float] = defaultdict(float)
        self._running: dict[int, Progress] = {}  # what these sums contain of each shard that is not finished

    def update(self, shard: int, progress: Progress) -> None:
        """Note the progress of a shard that is being embedded."""
        self.restart(shard)
        self._running[shard] = progress
        self._add(progress, 1)
        self._show(self.state)

    def restart(self, shard: int) -> None:
        """Forget the progress of a shard, e.g. because its process ended."""
        last = self._running.pop(shard, None)
        if last is not None:
            self._add(last, -1)

    def finish(self, receipt: Receipt) -> None:
        """Note a finished shard."""
        last = self._running.pop(receipt.shard, None)
        self._rows += receipt.input_rows - (0 if last is None else last.rows)
        if last is None:
            self._new_rows += receipt.input_rows
            self._tokens += receipt.counts.get("tokens", 0)
            self._errors += receipt.counts.get("errors", 0)
        self._show(self.state)

    @property
    def state(self) -> Progress:
        return Progress(
            rows=self._rows,
            total_rows=self._total_rows,
            new_rows=self._new_rows,
            tokens=self._tokens,
            seconds=time.perf_counter() - self._started,
            waits=dict(self._waits),
            errors=self._errors,
        )

    def _add(self, progress: Progress, sign: int) -> None:
        self._rows += sign * progress.rows
        self._new_rows += sign * progress.new_rows
        self._tokens += sign * progress.tokens
        self._errors += sign * progress.errors
        for stage, seconds in progress.waits.items():
            self._waits[stage] += sign * seconds
