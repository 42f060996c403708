"""SIGINT, SIGTERM and SIGHUP stop a job between two batches or training steps, so that it can be resumed.

A job that cannot be resumed stops wherever it is.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fastvec.errors import InterruptedRunError
from fastvec.system.stop_signals import STOP_SIGNALS

_KILLING = (signal.SIGINT, signal.SIGTERM)  # when they arrive again


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], int | None]]:
    """Yield a function that returns the number of the first SIGINT, SIGTERM or SIGHUP, or None before one arrives.

    If the same signal arrives again, it kills the process; not SIGHUP, which the kernel and the shell both send when a
    terminal is closed. If SIGHUP is ignored, as under `nohup`, it stays so.
    """
    received: list[int] = []
    with _handled_once(received.append):
        yield lambda: received[0] if received else None


@contextmanager
def interrupted_by_signal() -> Iterator[None]:
    """Raise InterruptedRunError at the first SIGINT, SIGTERM or SIGHUP, as Python does for SIGINT: drafts are deleted.

    Further signals are handled as by `stop_on_signal`.
    """
    received: list[int] = []

    def interrupt(number: int) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt  # which libraries do not take for an error of theirs

    with _handled_once(interrupt):
        try:
            yield
        except KeyboardInterrupt:
            raise InterruptedRunError("stopped", received[0] if received else signal.SIGINT) from None


@contextmanager
def _handled_once(handle: Callable[[int], None]) -> Iterator[None]:
    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL if number in _KILLING else signal.SIG_IGN)
        handle(number)

    handled = [number for number in STOP_SIGNALS if number in _KILLING or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
