"""Runs stages concurrently. Each stage is an iterator in its own thread, joined to the next by a bounded queue.

A slow stage fills the queue before it and drains the queue after it, so the other stages wait while it is busy.
"""

import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

POLL_SECONDS = 0.1  # how often a waiting stage checks whether it should stop


class StoppedError(Exception):
    """Raised in every stage, including the consumer, once the run should stop."""


class _End:
    """The last item in a queue: the previous stage finished, or failed with `error`."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Pipeline:
    """The stages of one run; leaving the `with` block stops and joins their threads.

    `should_stop` is called often, from every thread. `waits` counts the seconds that each stage waited for the stage
    before or after it, and `busy` the seconds that it worked.
    """

    def __init__(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        self.waits: defaultdict[str, float] = defaultdict(float)
        self.busy: defaultdict[str, float] = defaultdict(float)
        self._should_stop = should_stop
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()

    def check(self) -> None:
        """Raise StoppedError if the run should stop; a stage calls this during long work."""
        if self._closing.is_set() or self._should_stop():
            raise StoppedError

    @contextmanager
    def working(self, stage: str) -> Iterator[None]:
        """Count the time of the block as work of `stage`, minus the time that it waits for the previous stage."""
        started, waited = time.perf_counter(), self.waits[stage]
        try:
            yield
        finally:
            self.busy[stage] += time.perf_counter() - started - (self.waits[stage] - waited)

    def run_ahead(self, stage: str, items: Iterable[Item], *, feeds: str, depth: int) -> Iterator[Item]:
        """Iterate over `items` in a thread, at most `depth` ahead of the stage `feeds`, which consumes the result.

        An exception from `items` is raised in that stage.
        """
        link: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)
        thread = threading.Thread(target=self._pump, args=(stage, items, link), name=f"fastvec-{stage}", daemon=True)
        thread.start()
        self._threads.append(thread)  # which are joined at the end: not one that could not be started
        return self._drain(feeds, link)

    def _pump(self, stage: str, items: Iterable[Item], link: "queue.Queue[Item | _End]") -> None:
        end = _End()
        try:
            for item in self.run_here(stage, items):
                self._wait(stage, partial(link.put, item, timeout=POLL_SECONDS), queue.Full)
        except StoppedError:
            return
        except BaseException as error:  # any exception is raised again in the consuming stage
            end = _End(error)
        try:
            self._wait(stage, partial(link.put, end, timeout=POLL_SECONDS), queue.Full)
        except StoppedError:
            return

    def run_here(self, stage: str, items: Iterable[Item]) -> Iterator[Item]:
        """Iterate over `items` in this thread, counting it as work of `stage`."""
        iterator = iter(items)
        while True:
            with self.working(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _drain(self, stage: str, link: "queue.Queue[Item | _End]") -> Iterator[Item]:
        while True:
            item = self._wait(stage, partial(link.get, timeout=POLL_SECONDS), queue.Empty)
            if not isinstance(item, _End):
                yield item
            elif item.error is None:
                return
            else:
                raise item.error

    def _wait(self, stage: str, attempt: Callable[[], Result], not_yet: type[Exception]) -> Result:
        started = time.perf_counter()
        while True:
            self.check()
            try:
                result = attempt()
            except not_yet:
                continue
            self.waits[stage] += time.perf_counter() - started
            return result


def two_at_a_time(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order, while the next item is worked on in another thread."""
    with ThreadPoolExecutor(2) as pool:
        futures = (pool.submit(function, item) for item in items)
        for future in delayed(futures, by=1):
            yield future.result()


def delayed(items: Iterable[Item], *, by: int) -> Iterator[Item]:
    """Yield the same items in order, each one after `by` more have been taken from `items`.

    An exception of `items` is raised after the items that were taken before it.
    """
    taken: deque[Item] = deque()
    failure: Exception | None = None
    try:
        for item in items:
            taken.append(item)
            if len(taken) > by:
                yield taken.popleft()
    except Exception as error:
        failure = error
    yield from taken
    if failure is not None:
        raise failure
