"""Writes a map as a PNG, with matplotlib."""

import io
import warnings
from typing import Any

import numpy as np

from fastvec.maps.drawing import Drawing

WIDTH, HEIGHT, DPI = 10.0, 7.0, 160  # inches, dots per inch: 1600 x 1120
TEXT, MUTED = "#1f2328", "#656d76"


def picture_of(drawing: Drawing) -> bytes:
    """Return the PNG of a drawing. The same drawing gives the same bytes with the same version of matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.015, 0.015, 0.97, 0.87))
    axes.axis("off")
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.04)
    points, palette = drawing.points, np.array(drawing.coloring.palette)
    area = min(38.0, 14_000 / len(points)) + 1.5  # of a point, in square points of 1/72 inch
    colors = palette[drawing.coloring.of_points]
    axes.scatter(points[:, 0], points[:, 1], s=area, c=colors, alpha=0.65 if len(points) > 5000 else 0.8, linewidths=0)
    # texts of a corpus may contain $, which is no formula
    plain: dict[str, Any] = {"parse_math": False}
    figure.text(0.02, 0.965, drawing.title, fontsize=14, fontweight="bold", color=TEXT, va="center", **plain)
    figure.text(0.02, 0.925, drawing.subtitle, fontsize=9, color=MUTED, va="center", **plain)
    with warnings.catch_warnings():  # of characters that the font does not have, which become boxes
        warnings.simplefilter("ignore")
        _add_legend(axes, drawing)
        _add_labels(canvas, axes, drawing)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def _add_legend(axes: Any, drawing: Drawing) -> None:
    from matplotlib.lines import Line2D

    coloring = drawing.coloring
    if not coloring.column:
        return
    if coloring.ends:
        steps = [(coloring.palette[0], coloring.ends[0]), (coloring.palette[-2], coloring.ends[1])]
    else:
        named = zip(coloring.names, coloring.counts, strict=True)
        steps = list(zip(coloring.palette, (f"{name} ({count:,})" for name, count in named), strict=True))
    handles = [Line2D([], [], marker="o", linestyle="", color=color, label=label) for color, label in steps]
    legend = axes.legend(
        handles=handles, title=coloring.column, loc="upper right", fontsize=8, title_fontsize=8, edgecolor="#e5e7eb"
    )
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)


def _add_labels(canvas: Any, axes: Any, drawing: Drawing) -> None:
    """Draw the labels that do not overlap an earlier one."""
    from matplotlib.patheffects import withStroke

    canvas.draw()  # which sets the scale of the axes
    renderer = canvas.get_renderer()
    taken: list[Any] = []
    for label in drawing.labels:
        text = axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(0, 4 if label.is_above else 0),
            textcoords="offset points",
            ha="center",
            va="bottom" if label.is_above else "center",
            color=label.color,
            fontsize=9,
            fontweight="bold",
            linespacing=1.1,
            parse_math=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        box = text.get_window_extent(renderer).padded(4)
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)
