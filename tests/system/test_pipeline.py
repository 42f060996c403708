import threading
import time
from collections.abc import Iterator

import pytest

from fastvec.system.pipeline import Pipeline, StoppedError, delayed, two_at_a_time


def test_items_come_in_order_through_several_stages() -> None:
    with Pipeline() as pipeline:
        numbers = pipeline.run_ahead("read", range(100), feeds="double", depth=2)
        doubled = pipeline.run_ahead("double", (2 * n for n in numbers), feeds="write", depth=3)
        assert list(doubled) == list(range(0, 200, 2))


def test_a_stage_runs_no_further_ahead_than_its_queue() -> None:
    made: list[int] = []

    def count() -> Iterator[int]:
        for n in range(100):
            made.append(n)
            yield n

    with Pipeline() as pipeline:
        numbers = pipeline.run_ahead("read", count(), feeds="write", depth=2)
        assert next(numbers) == 0
        time.sleep(0.3)
        assert len(made) <= 4  # one taken, two queued, one waiting for a free slot


def test_an_error_in_a_stage_is_raised_where_its_items_are_taken() -> None:
    def fail() -> Iterator[int]:
        yield 1
        raise OSError("bad page")

    with Pipeline() as pipeline:
        numbers = pipeline.run_ahead(
            "tokenize", pipeline.run_ahead("read", fail(), feeds="tokenize", depth=1), feeds="write", depth=1
        )
        assert next(numbers) == 1
        with pytest.raises(OSError, match="bad page"):
            next(numbers)


def test_leaving_early_ends_every_thread() -> None:
    with Pipeline() as pipeline:
        numbers = pipeline.run_ahead("read", range(10**9), feeds="write", depth=2)
        next(numbers)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("fastvec-")] == []


def test_a_thread_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not joined at the end, which would raise another error."""

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="can't start new thread"), Pipeline() as pipeline:
        pipeline.run_ahead("read", iter(range(8)), feeds="encode", depth=1)


def test_a_stop_request_reaches_a_consumer_that_waits() -> None:
    stop = threading.Event()

    def endless() -> Iterator[int]:
        while True:
            time.sleep(0.01)
            pipeline.check()
        yield 0

    pipeline = Pipeline(stop.is_set)
    with pipeline:
        numbers = pipeline.run_ahead("encode", endless(), feeds="write", depth=1)
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(StoppedError):
            next(numbers)


def test_the_slow_stage_is_busy_while_the_others_wait() -> None:
    def slowly(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            time.sleep(0.05)
            yield item

    with Pipeline() as pipeline:
        numbers = pipeline.run_ahead("read", iter(range(8)), feeds="encode", depth=1)
        for _ in pipeline.run_ahead("encode", slowly(numbers), feeds="write", depth=1):
            pass
    assert max(pipeline.busy, key=pipeline.busy.__getitem__) == "encode"
    assert min(pipeline.waits, key=pipeline.waits.__getitem__) == "encode"


def test_an_error_comes_after_the_items_that_were_taken_before_it() -> None:
    def inverse(number: int) -> float:
        return 1 / number

    for found in (delayed(map(inverse, [1, 2, 0, 4]), by=1), two_at_a_time(inverse, [1, 2, 0, 4])):
        assert [next(found), next(found)] == [1, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(found)


def test_two_items_are_worked_on_at_a_time_in_order() -> None:
    both = threading.Barrier(2, timeout=5)

    def wait(number: int) -> int:
        both.wait()
        return number

    assert list(two_at_a_time(wait, range(10))) == list(range(10))
