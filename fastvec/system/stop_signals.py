"""The signals that stop a job so that it can be resumed."""

import signal
from collections.abc import Callable

from fastvec.errors import InterruptedRunError

# SIGHUP: the terminal was closed, or the connection to it was lost. Windows has none.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def require_no_signal(stop_signal: Callable[[], int | None], stopped: str) -> None:
    """Raise InterruptedRunError if `stop_signal` returns a signal; `stopped` is what was done then and what remains."""
    if (number := stop_signal()) is not None:
        raise InterruptedRunError(f"stopped by {signal.Signals(number).name} while {stopped}", number)
