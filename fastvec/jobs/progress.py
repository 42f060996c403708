"""One view of the progress of a job whose shards are embedded at the same time."""

import time
from collections import Counter
from collections.abc import Callable

from fastvec.report import Progress
from fastvec.shards.receipts import Receipt


class JobProgress:
    """Adds up the progress of shards.

    `total_rows` are those of all shards that this run shall finish, `finished_rows` those that earlier runs finished.
    """

    def __init__(self, total_rows: int, finished_rows: int, show: Callable[[Progress], None]) -> None:
        self._total_rows, self._show, self._started = total_rows, show, time.perf_counter()
        self._rows, self._new_rows, self._tokens = finished_rows, 0, 0  # of finished shards
        self._waits: Counter[str] = Counter()
        self._running: dict[int, Progress] = {}

    def update(self, shard: int, progress: Progress) -> None:
        """Note the progress of a shard that is being embedded."""
        self._running[shard] = progress
        self._show(self.state)

    def restart(self, shard: int) -> None:
        """Forget the progress of a shard whose process ended."""
        self._running.pop(shard, None)

    def finish(self, receipt: Receipt) -> None:
        """Note a finished shard."""
        last = self._running.pop(receipt.shard, None)
        self._rows += receipt.input_rows
        self._new_rows += receipt.input_rows if last is None else last.new_rows
        self._tokens += receipt.counts.get("tokens", 0) if last is None else last.tokens
        self._waits.update({} if last is None else last.waits)
        self._show(self.state)

    @property
    def state(self) -> Progress:
        running = self._running.values()
        return Progress(
            rows=self._rows + sum(one.rows for one in running),
            total_rows=self._total_rows,
            new_rows=self._new_rows + sum(one.new_rows for one in running),
            tokens=self._tokens + sum(one.tokens for one in running),
            seconds=time.perf_counter() - self._started,
            waits=dict(sum((Counter(one.waits) for one in running), self._waits.copy())),
        )
