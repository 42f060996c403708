"""Displays progress on stderr: a live line on a terminal, otherwise a line every ten seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO, cast

from fastvec.cli.streams import null_stream, say

LINE_SECONDS = 10.0


class Displayable(Protocol):
    """Progress that can be displayed: `str` returns one line, `share` how much is done and how much there is in all."""

    @property
    def share(self) -> tuple[int, int]: ...


@contextmanager
def progress_display(*, quiet: bool) -> Iterator[Callable[[Displayable], None]]:
    """Yield a function that displays progress on stderr; with `quiet`, it displays nothing."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _live() as show:
            yield show
    else:
        yield _Lines().show


class _Lines:
    def __init__(self) -> None:
        self._next = time.monotonic() + LINE_SECONDS

    def show(self, progress: Displayable) -> None:
        if time.monotonic() >= self._next:
            say(progress)
            self._next = time.monotonic() + LINE_SECONDS


class _Stderr:
    """The current stderr. When its terminal is gone, which a job after `disown` survives, it continues in silence."""

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, method: str, *args: str) -> None:
        try:
            getattr(sys.stderr, method)(*args)
        except OSError:
            sys.stderr = null_stream()  # otherwise Python flushes it at exit, fails, and changes the exit code

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


@contextmanager
def _live() -> Iterator[Callable[[Displayable], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(file=cast(TextIO, _Stderr()))
    with Bar(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def show(progress: Displayable) -> None:
            completed, total = progress.share
            bar.update(task, completed=completed, total=total, description=str(progress))

        yield show
