"""Draws scores as bars with their intervals, a plot for each measure of each task."""

from typing import BinaryIO

from fastvec.evaluation.report import EvalReport

ACROSS = 3


def draw(report: EvalReport, file: BinaryIO) -> None:
    """Write a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = report.columns
    across = min(len(columns), ACROSS)
    down = -(-len(columns) // across)
    height = 1.2 + 0.35 * len(report.names)
    figure = Figure(figsize=(5 * across, height * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False)
    for axis, (task, measure) in zip(axes.flat, columns, strict=False):
        scores = list(report.of((task, measure)).values())[::-1]
        values = [100 * score.value for score in scores]
        below = [100 * max(score.value - score.low, 0) for score in scores]
        above = [100 * max(score.high - score.value, 0) for score in scores]
        colors = ["C7" if score.baseline else "C0" for score in scores]
        axis.barh([score.name for score in scores], values, xerr=[below, above], color=colors)
        axis.set(title=task, xlabel=f"{measure} × 100")
    for axis in axes.flat[len(columns) :]:
        axis.remove()
    figure.savefig(file, format="png", dpi=100)
