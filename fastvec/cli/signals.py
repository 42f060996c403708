"""SIGINT, SIGTERM and SIGHUP stop a job between two batches or training steps, so that it can be resumed."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fastvec.system.stop_signals import STOP_SIGNALS

_KILLING = (signal.SIGINT, signal.SIGTERM)  # when they arrive again


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], int | None]]:
    """Yield a function that returns the number of the first SIGINT, SIGTERM or SIGHUP, or None before one arrives.

    If the same signal arrives again, it kills the process; not SIGHUP, which the kernel and the shell both send when a
    terminal is closed. If SIGHUP is ignored, as under `nohup`, it stays so.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL if number in _KILLING else signal.SIG_IGN)

    handled = [number for number in STOP_SIGNALS if number in _KILLING or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
