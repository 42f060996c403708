"""Saves plots as PNGs: `picture` for any plot, `plot` for bars of result rows, one plot per group and direction."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.reporting.results import Row


@contextmanager
def picture(
    path: Path, *, lines: int = 1, columns: int = 1, figsize: tuple[float, float], sharey: bool = False
) -> Iterator[tuple[Any, Any]]:
    """Yield a figure and its array of axes [lines, columns], and save it as a PNG at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(lines, columns, figsize=figsize, sharey=sharey, squeeze=False)
    try:
        yield figure, axes
        figure.tight_layout()
        figure.savefig(path, dpi=100)
    finally:
        pyplot.close(figure)


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Plot rates by shape and implementation, with the measured ceiling as a line; write no file without timed rows."""
    timed = [row for row in rows if row.rate is not None]
    if not timed:
        return
    plots = list(dict.fromkeys((row.group, row.direction) for row in timed))
    names = list(dict.fromkeys(row.implementation for row in timed))
    columns = min(2, len(plots))
    lines = -(-len(plots) // columns)
    with picture(path, lines=lines, columns=columns, figsize=(9 * columns, 3.6 * lines)) as (figure, axes):
        for axis, (group, direction) in zip(axes.flat, plots, strict=False):
            own = [row for row in timed if (row.group, row.direction) == (group, direction)]
            _bars(axis, own, names)
        for axis in axes.flat[len(plots) :]:
            axis.remove()
        axes[0, 0].legend(fontsize="small")
        figure.suptitle(title)


def _bars(axis: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Draw the rows of one group and direction, with a colour for each implementation in `names`."""
    group = rows[0].group
    shapes = list(dict.fromkeys(row.shape for row in rows))
    unit, scale = ("TFLOP/s", 1e12) if rows[0].flops else ("GB/s", 1e9)
    for place, name in enumerate(names):
        bars = [(shapes.index(row.shape), row.rate / scale) for row in rows if row.implementation == name and row.rate]
        if bars:
            at = [x + (place - (len(names) - 1) / 2) * 0.8 / len(names) for x, _ in bars]
            axis.bar(at, [rate for _, rate in bars], 0.8 / len(names), label=name, color=f"C{place}")
    if rows[0].ceiling is not None:
        axis.axhline(rows[0].ceiling / scale, color="black", linewidth=0.8, linestyle="--", label="measured ceiling")
    axis.set_xticks(range(len(shapes)), [shape.removeprefix(group).strip() for shape in shapes])
    axis.set(title=f"{group}, {rows[0].direction}", ylabel=unit)
