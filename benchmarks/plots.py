"""Bars of measured rows, a plot for each group of shapes and direction, in one PNG."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import Row


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Rates by shape and implementation, with the measured ceiling as a line; nothing where no row has a time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    timed = [row for row in rows if row.rate is not None]
    if not timed:
        return
    plots = list(dict.fromkeys((row.group, row.direction) for row in timed))
    names = list(dict.fromkeys(row.implementation for row in timed))
    columns = min(2, len(plots))
    lines = -(-len(plots) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(9 * columns, 3.6 * lines), squeeze=False)
    for axis, (group, direction) in zip(axes.flat, plots, strict=False):
        own = [row for row in timed if (row.group, row.direction) == (group, direction)]
        shapes = list(dict.fromkeys(row.shape for row in own))
        unit, scale = ("TFLOP/s", 1e12) if own[0].flops else ("GB/s", 1e9)
        for place, name in enumerate(names):
            bars = [
                (shapes.index(row.shape), row.rate / scale) for row in own if row.implementation == name and row.rate
            ]
            if bars:
                at = [x + (place - (len(names) - 1) / 2) * 0.8 / len(names) for x, _ in bars]
                axis.bar(at, [rate for _, rate in bars], 0.8 / len(names), label=name, color=f"C{place}")
        if own[0].ceiling is not None:
            axis.axhline(own[0].ceiling / scale, color="black", linewidth=0.8, linestyle="--", label="measured ceiling")
        axis.set_xticks(range(len(shapes)), [shape.removeprefix(group).strip() for shape in shapes])
        axis.set(title=f"{group}, {direction}", ylabel=unit)
    for axis in axes.flat[len(plots) :]:
        axis.remove()
    axes[0, 0].legend(fontsize="small")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
