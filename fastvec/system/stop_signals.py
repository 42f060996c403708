"""The signals that stop a job so that it can be resumed."""

import signal

# SIGHUP: the terminal was closed, or the connection to it was lost. Windows has none.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
