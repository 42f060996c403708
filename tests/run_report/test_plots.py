"""The figures: what they draw, whatever the numbers, and that they take their colours from the page."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from fastvec.embedding.measurements import NORM_EDGES
from fastvec.run_report import plots
from fastvec.run_report.style import STYLE


def bars(svg: plots.Svg) -> list[float]:
    """The heights of a figure's bars, in units of the figure, from left to right."""
    paths = re.findall(rf'd="([^"]*)"[^>]*style="fill: var\({plots.VARIABLES[plots.ACCENT]}\)"', svg.markup)
    heights = []
    for path in paths:
        ys = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]
        heights.append(max(ys) - min(ys))
    return heights


def test_a_histogram_has_every_sequence_and_the_limit() -> None:
    counts = np.zeros(101, dtype=np.int64)
    counts[[1, 2, 3, 99, 100]] = [4, 0, 2, 1, 9]  # bars of two lengths each, from 1 on
    found = bars(plots.lengths(counts, 100))
    assert len(found) == 50
    drawn = [height for height in found if height > 0]
    assert np.allclose(np.array(drawn) / max(drawn), np.array([4, 2, 10]) / 10, atol=1e-5)  # six digits in the SVG


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.lengths(np.array([3]), 512),  # only empty sequences
        lambda: plots.lengths(np.array([0, 0, 1]), 8192),
        lambda: plots.norms(np.bincount([0, 5, len(NORM_EDGES)], minlength=len(NORM_EDGES) + 1), NORM_EDGES),
        lambda: plots.norms(np.bincount([7, len(NORM_EDGES) - 1], minlength=len(NORM_EDGES) + 1), NORM_EDGES),
        lambda: plots.rates([0.0, 1e-9], {"rows/s": [0, 0]}),
        lambda: plots.rates([0.0, 2.0, 2.0, 2.0, 9.0], {"rows/s": [0, 5, 3, 9, 10], "tokens/s": [0, 5, 3, 9, 10]}),
        lambda: plots.stages({"read": 0.0, "encode": 2.0}, {}),
        lambda: plots.curves("loss", {"loss": {"training": [(0, 1.0)], "held out": [(0, 1.0), (1, 2.0)]}}),
    ],
)
def test_a_figure_takes_its_colours_from_the_page(draw: Callable[[], plots.Svg]) -> None:
    svg = draw()
    assert svg.markup.startswith('<svg viewBox="')
    assert not re.search(r"#[0-9a-f]{6}|http|<script|nan", svg.markup.replace("url(#", ""))
    variables = set(re.findall(r"var\((--\w+)\)", svg.markup))
    assert variables
    assert all(f"{name}:" in STYLE for name in variables)


def test_rates_are_means_of_intervals_with_two_points() -> None:
    # two processes report at nearly the same moments: 50 rows a second altogether
    seconds = [0.0] + [moment for second in range(1, 11) for moment in (second - 1e-6, second)]
    svg = plots.rates(seconds, {"rows/s": [0.0] + [25.0 * number for number in range(1, 21)]})
    labels = [float(label) for label in re.findall(r">([\d,.]+)</text>", svg.markup.replace(",", ""))]
    assert max(labels) < 100
