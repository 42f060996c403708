"""Shows how many texts of a call are encoded, on a terminal or in a notebook."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, *, show: bool | None) -> Iterator[Callable[[float], None]]:
    """Yield a function that shows how many of `total` texts are done; without `show`, or without a display, nothing.

    In a notebook, rich draws the bar with ipywidgets, and warns if that is not installed.
    """
    if not show:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("texts"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (console.is_terminal or console.is_jupyter)) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
        bar.refresh()  # in a notebook, rich does not draw the last state by itself
