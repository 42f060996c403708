"""Messages for people go to stderr, results to stdout.

Either stream may be closed from the start, or break while the job runs.
"""

import json
import logging
import os
import sys
from typing import Any, NoReturn, TextIO

import click

from fastvec.errors import printable


def say(message: object) -> None:
    """Print to the current stderr. If its reader is gone (`2>&1 | head -1`), the job continues in silence."""
    try:
        print(*map(printable, str(message).split("\n")), sep="\n", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = null_stream()  # otherwise Python flushes it at exit, fails, and changes the exit code


def null_stream() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_RDWR), "w", encoding="utf-8", errors="replace")


def fail(message: str, exit_code: int) -> NoReturn:
    say(f"fastvec: {message}")
    sys.exit(exit_code)


def print_result(text: str) -> None:
    """Print a result to stdout; if that fails, exit with code 1."""
    try:
        click.echo(text)
    except OSError as error:
        sys.stdout = null_stream()  # otherwise Python flushes it at exit and prints an error of its own
        fail(f"the result cannot be written to stdout: {error.strerror}", 1)


def print_report(report: Any, as_json: bool) -> NoReturn:
    """End a command whose result is its output."""
    print_result(json.dumps(report.to_json()) if as_json else str(report))
    sys.exit(report.return_code)


def end_job(report: Any, *, as_json: bool, quiet: bool) -> NoReturn:
    """End a command whose result is a file: the report goes to stdout as JSON, or to stderr as text."""
    if as_json:
        print_result(json.dumps(report.to_json()))
    elif not quiet:
        say(str(report))
    sys.exit(report.return_code)


def open_closed_streams() -> None:
    """Connect streams that were closed (`2>&-`) to the null device.

    Otherwise the next file that fastvec opens gets the stream's file descriptor, and whatever libraries write to it.
    """
    for name in ("stdin", "stdout", "stderr"):  # in order of their file descriptors: open() takes the lowest free one
        if getattr(sys, name) is None:
            setattr(sys, name, null_stream())


class StderrLog(logging.Handler):
    """Prints log records as plain lines to the current stderr, above a live progress line."""

    def emit(self, record: logging.LogRecord) -> None:
        say(printable(self.format(record)))


def log_to_stderr(quiet: bool, level: int = logging.INFO) -> None:
    log = logging.getLogger("fastvec")
    log.setLevel(logging.ERROR if quiet else level)
    if not log.handlers:
        log.addHandler(StderrLog())
