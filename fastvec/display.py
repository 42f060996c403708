"""Progress for people, on stderr: a live line on a terminal, elsewhere a plain line every ten seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastvec.report import Progress

LINE_SECONDS = 10.0


@contextmanager
def progress_display(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """What shows each `Progress` it is called with, as fits where stderr goes."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _live() as show:
            yield show
    else:
        yield _Lines().show


def as_line(progress: Progress) -> str:
    """One line: rows done, rates, time left, and what each stage waited."""
    done = f"{progress.rows:,} of {progress.total_rows:,} rows"
    rates = f"{progress.rows_per_second:,.0f} rows/s, {progress.tokens_per_second:,.0f} tokens/s"
    left = "" if progress.seconds_left is None else f", {_clock(progress.seconds_left)} left"
    waits = " ".join(f"{stage} {seconds:.0f}s" for stage, seconds in sorted(progress.waits.items()))
    return f"{done}, {rates}{left}" + (f" (waits: {waits})" if waits else "")


class _Lines:
    def __init__(self) -> None:
        self._next = time.monotonic() + LINE_SECONDS

    def show(self, progress: Progress) -> None:
        if time.monotonic() >= self._next:
            print(as_line(progress), file=sys.stderr, flush=True)
            self._next = time.monotonic() + LINE_SECONDS


@contextmanager
def _live() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.rows, total=progress.total_rows, description=as_line(progress))

        yield show


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
