"""Times GPU calls with CUDA events.

The calls of a round are queued after a kernel that only sleeps, so that the host stays ahead of the device: the events
then measure the device's time alone, and the host's time is measured separately. Calls alternate between several sets
of inputs, so that a call does not find its inputs in the L2 cache.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Inputs = TypeVar("Inputs")
WARM_UPS = 3
LEAST_CALLS, MOST_CALLS = 5, 200
CALLS_A_ROUND = 20
QUEUED_SECONDS = 0.005  # of the host, in a round: the queue has room for about a thousand launches, of 5 µs or more
LONGEST_SLEEP = 0.2  # seconds
CYCLES_A_SECOND = 2_000_000_000  # of the clock that _sleep counts; at most 1.98 GHz on an H100


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds per call, and the number of calls timed."""

    median: float
    p20: float
    p80: float
    host: float  # until the call returned to the program; the device may still be working
    calls: int


def measure(call: Callable[[Inputs], object], inputs: Sequence[Inputs], *, seconds: float = 0.2) -> Timing:
    """Time `call` on each of `inputs` in turn, for about `seconds` of device time, but 5 to 200 calls."""
    for turn in range(WARM_UPS):
        call(inputs[turn % len(inputs)])
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call(inputs[0])
    host = time.perf_counter() - begin
    torch.cuda.synchronize()
    once = time.perf_counter() - begin
    calls = max(LEAST_CALLS, min(MOST_CALLS, int(seconds / once)))
    on_device: list[float] = []
    on_host: list[float] = []
    while len(on_device) < calls:
        queued = max(1, min(calls - len(on_device), CALLS_A_ROUND, int(QUEUED_SECONDS / host)))
        device_times, host_times = _round(call, inputs, queued, host)
        on_device += device_times
        on_host += host_times
    return summary(on_device, on_host)


def _round(
    call: Callable[[Inputs], object], inputs: Sequence[Inputs], calls: int, host_time: float
) -> tuple[list[float], list[float]]:
    cuda: Any = torch.cuda  # torch.cuda.Event and _sleep have no annotations
    events = [cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    host = []
    cuda._sleep(int(min(1.5 * calls * host_time, LONGEST_SLEEP) * CYCLES_A_SECOND))
    events[0].record()
    for turn in range(calls):
        begin = time.perf_counter()
        call(inputs[turn % len(inputs)])
        host.append(time.perf_counter() - begin)
        events[turn + 1].record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)], host


def summary(on_device: Sequence[float], on_host: Sequence[float]) -> Timing:
    fifths = statistics.quantiles(on_device, n=5, method="inclusive")
    return Timing(
        median=statistics.median(on_device),
        p20=fifths[0],
        p80=fifths[-1],
        host=statistics.median(on_host),
        calls=len(on_device),
    )


def copies_beyond_cache(bytes_of_one: int, cache_bytes: int) -> int:
    """Return how many sets of inputs fill twice the cache, at most 16."""
    return min(16, max(1, -(-2 * cache_bytes // bytes_of_one)))
