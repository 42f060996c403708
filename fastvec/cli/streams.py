"""What people read goes to stderr, results to stdout. Either may be closed, or break while the work goes on."""

import json
import logging
import os
import sys
from typing import Any, NoReturn, TextIO

import click


def say(message: object) -> None:
    """A line on whatever stderr is now. Where nobody reads any more (`2>&1 | head -1`), the work goes on unheard."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = nowhere()  # at exit Python would try again, and end with another code than the job's


def nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_RDWR), "w", encoding="utf-8", errors="replace")


def fail(message: str, exit_code: int) -> NoReturn:
    say(f"fastvec: {message}")
    sys.exit(exit_code)


def print_result(text: str) -> None:
    """A result, on stdout."""
    try:
        click.echo(text)
    except OSError as error:
        sys.stdout = nowhere()  # at exit Python would try again, and complain in its own words
        fail(f"the result cannot be written to stdout: {error.strerror}", 1)


def print_report(report: Any, as_json: bool) -> NoReturn:
    print_result(json.dumps(report.to_json()) if as_json else str(report))
    sys.exit(report.return_code)


def open_closed_streams() -> None:
    """What was closed (`2>&-`) leads nowhere; else our files would get its number, and what libraries write to it."""
    for name in ("stdin", "stdout", "stderr"):  # in the order of their numbers: the lowest free one is taken
        if getattr(sys, name) is None:
            setattr(sys, name, nowhere())


class StderrLog(logging.Handler):
    """Log lines as plain lines on whatever stderr is now, above a live progress line."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def log_to_stderr(quiet: bool) -> None:
    log = logging.getLogger("fastvec")
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    if not log.handlers:
        log.addHandler(StderrLog())
