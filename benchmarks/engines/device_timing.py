"""Times calls on the device of this machine: a GPU with CUDA events, a CPU by the clock.

A call here is a whole forward, or a single op. A forward has hundreds of launches, and a GPU's queue takes about a
thousand: were several forwards queued, the host would wait for the device. So each one is timed alone.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from benchmarks.ops.timing import CYCLES_A_SECOND, LONGEST_SLEEP, measure

Inputs = TypeVar("Inputs")
FEWEST, MOST = 3, 20  # times that a call is timed
FEWEST_IN_A_ROW, MOST_IN_A_ROW = 2, 50


def time_op(call: Callable[[Inputs], object], inputs: Sequence[Inputs], *, seconds: float) -> float:
    """Return the seconds that an op takes the device, for inputs that take turns."""
    if torch.cuda.is_available():
        return measure(call, inputs, seconds=seconds).median
    call(inputs[0])
    return _on_cpu(lambda: call(inputs[0]), seconds)


def time_alone(calls: Sequence[Callable[[], object]], *, seconds: float) -> tuple[float, float]:
    """Return the mean seconds of calls that have run before: on the device, and until a call returns.

    On a GPU they are medians of each call. On a CPU both are the shortest time, as a call returns when it is done.
    """
    if not torch.cuda.is_available():
        mean = statistics.fmean(_on_cpu(call, seconds / len(calls)) for call in calls)
        return mean, mean
    found = [_on_gpu(call, seconds / len(calls)) for call in calls]
    return statistics.fmean(device for device, _ in found), statistics.fmean(host for _, host in found)


def time_in_a_row(call: Callable[[], object], *, once: float, seconds: float) -> float:
    """Return the seconds of each of several calls, one directly after the other; `once` is about what one takes.

    The host prepares a call while the device computes the one before, so this is the longer one of their times.
    """
    calls = max(FEWEST_IN_A_ROW, min(MOST_IN_A_ROW, int(seconds / once)))
    wait()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return (time.perf_counter() - started) / calls


def wait() -> None:
    """Wait until the device has done everything."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _on_cpu(call: Callable[[], object], seconds: float) -> float:
    times: list[float] = []
    while len(times) < FEWEST or sum(times) < seconds:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _on_gpu(call: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Return device and host seconds, from separate calls: for the device's, the launches wait behind a sleep."""
    cuda: Any = torch.cuda  # torch.cuda.Event and _sleep have no annotations
    on_device: list[float] = []
    on_host: list[float] = []
    while len(on_device) < FEWEST or (sum(on_device) < seconds and len(on_device) < MOST):
        wait()
        begin = time.perf_counter()
        call()
        on_host.append(time.perf_counter() - begin)
        wait()
        start, end = (cuda.Event(enable_timing=True) for _ in range(2))
        cuda._sleep(int(min(1.5 * on_host[-1], LONGEST_SLEEP) * CYCLES_A_SECOND))
        start.record()
        call()
        end.record()
        wait()
        on_device.append(start.elapsed_time(end) / 1e3)
    return statistics.median(on_device), statistics.median(on_host)
