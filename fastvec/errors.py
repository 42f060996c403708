"""Every error a user can cause, and the exit code it ends the command with.

FastvecError                 1
├── UsageError               2    options that contradict each other
├── InputError               1    a corpus file or column that cannot be read
├── ModelError               1    a checkpoint that cannot be loaded
├── OutputError              1    an output that cannot be written, or is not what it should be
│   ├── RefusedError         4    the output belongs to another job, or to a running one
│   └── DiskFullError        5    no space left; what is durable stays, the command resumes
├── RowErrorsError           3    stopped by --on-error fail or --max-errors; resumable
└── InterruptedRunError  130/143  stopped by a signal; resumable

A message is one line: what was found, what was expected, what to do.
"""


class FastvecError(Exception):
    """The root: one clear line for the user, never a traceback."""

    exit_code = 1


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


class RowErrorsError(FastvecError):
    exit_code = 3


class InterruptedRunError(FastvecError):
    """Stopped by a signal after the finished chunks were committed; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def one_line(error: Exception) -> str:
    """What another library's error says, short enough to stand in a line of ours."""
    return " ".join(str(error).split())[:300]
