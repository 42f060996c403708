"""The errors a user can cause, with the exit codes that they end the command with.

    FastvecError                 1
    ├── UsageError               2    options that are invalid or contradict each other
    ├── InputError               1    a corpus file or column that cannot be read
    ├── ModelError               1    a checkpoint that cannot be loaded or used
    ├── OutputError              1    an output that cannot be written, or is damaged
    │   ├── RefusedError         4    the output exists, or belongs to another job, or to a running one
    │   └── DiskFullError        5    no space left; durable rows are kept; resumable
    ├── WorkerError              1    processes that embed shards died; resumable
    ├── RowErrorsError           3    stopped by --on-error fail or --max-errors; resumable
    ├── LostProcessError         1    another process of a distributed run is gone; resumable
    ├── OutOfMemoryError         1    this process gets no more memory; resumable
    └── InterruptedRunError  128+n    stopped by signal n, SIGHUP, SIGINT or SIGTERM; resumable

A message is one line: what was found, what was expected, what to do. It may name files and columns, whose names can
contain anything: it is shown with line ends, terminal escapes and the like written as in Python's strings.
"""

import reprlib
from unicodedata import category


class FastvecError(Exception):
    """The base class. The command prints the message as one line, without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(FastvecError):
    exit_code = 2


class InputError(FastvecError):
    pass


class ModelError(FastvecError):
    pass


class OutputError(FastvecError):
    pass


class RefusedError(OutputError):
    exit_code = 4


class DiskFullError(OutputError):
    exit_code = 5


class WorkerError(FastvecError):
    pass


class RowErrorsError(FastvecError):
    exit_code = 3


class LostProcessError(FastvecError):
    pass


class OutOfMemoryError(FastvecError):
    pass


class InterruptedRunError(FastvecError):
    """Stopped by a signal, after finished work was saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return printable(str(self.args[0]))


def printable(text: str) -> str:
    """Return `text` on one line, with control and format characters and lone surrogates escaped."""
    if text.isprintable():
        return text
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(ascii(one)[1:-1] if category(one) in hidden else one for one in text)


_QUOTED = reprlib.Repr()
_QUOTED.maxstring = _QUOTED.maxother = 80
_QUOTED.maxlevel = 2


def quoted(value: object) -> str:
    """Return the repr of a value of a file, cut in the middle if it is long, to quote it in a message."""
    return _QUOTED.repr(value)


def one_line(error: Exception) -> str:
    """Return another library's error message on one line, cut to 300 characters, to quote it in a message."""
    return " ".join(str(error).split())[:300]
