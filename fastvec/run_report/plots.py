"""The figures of a report, as SVG that takes its colours and its font from the page.

matplotlib draws them with placeholders for colours, which become variables of the style sheet.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
Arguments = ParamSpec("Arguments")

# placeholder: variable of the style sheet
INK, SOFT, LINE, ACCENT, WASH = "#010203", "#020304", "#030405", "#040506", "#050607"
VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", ACCENT: "--accent", WASH: "--wash"}
WIDTH = 5.0  # inches, of 72 units each; as wide as a card, so that text is as large as drawn
SETTINGS: Any = {  # of matplotlib, whose type for them is the list of all names
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fastvec",  # the same figure has the same ids
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
BARS = 50  # of a histogram, at most
MARKED = 30  # points of a line with a marker for each, at most
INTERVALS = 60  # of a rate over time, at most


@dataclass(frozen=True, slots=True)
class Svg:
    """A figure, as an element of HTML."""

    markup: str


def styled(draw: Callable[Arguments, Svg]) -> Callable[Arguments, Svg]:
    """Return a function that draws with `SETTINGS`."""

    @wraps(draw)
    def drawn(*arguments: Arguments.args, **named: Arguments.kwargs) -> Svg:
        from matplotlib import rc_context

        with rc_context(SETTINGS):
            return draw(*arguments, **named)

    return drawn


@styled
def rates(seconds: Sequence[float], series: Mapping[str, Sequence[float]]) -> Svg:
    """Plot the rate of each of the `series`, sums so far [n] at `seconds` [n], in a panel of its own.

    A rate is the mean of an interval with about two of the points: several processes report a chunk each at nearly the
    same moment, and between two such points the rate would be that of no time.
    """
    borders = np.linspace(0, seconds[-1], 1 + min(max((len(seconds) - 1) // 2, 1), INTERVALS))
    figure, panels = _figure(1.55 * len(series), len(series))
    for axes, (name, sums) in zip(panels, series.items(), strict=True):
        # a shard that is begun again takes back its rows
        each = np.maximum(np.diff(np.interp(borders, seconds, sums)), 0) / np.diff(borders)
        axes.stairs(each, borders, fill=True, color=WASH)
        axes.stairs(each, borders, color=ACCENT, linewidth=1.2, baseline=None)
        axes.set(xlim=(0, borders[-1]), ylim=(0, None), ylabel=name)
        _number(axes.yaxis)
    panels[-1].set_xlabel("seconds")
    _number(panels[-1].xaxis)
    return _svg(figure, "Rates over time", "rates")


@styled
def stages(worked: Mapping[str, float], waited: Mapping[str, float]) -> Svg:
    """Plot the seconds that each stage worked, and waited for its neighbours."""
    names = list(worked)
    figure, (axes,) = _figure(0.8 + 0.38 * len(names), 1)
    work, waits = [worked[name] for name in names], [waited.get(name, 0.0) for name in names]
    axes.barh(names, work, color=ACCENT, height=0.6, label="worked")
    axes.barh(names, waits, left=work, color=WASH, height=0.6, label="waited")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    axes.tick_params(axis="y", labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("seconds")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0, handlelength=1)
    _number(axes.xaxis)
    return _svg(figure, "Work and waits of the stages", "stages")


@styled
def lengths(counts: Array, max_length: int) -> Svg:
    """Plot a histogram of sequences, of which there are `counts` [longest + 1], with a line at `max_length`.

    A bar ends with the length where it ends, so that sequences of `max_length` are left of the line.
    """
    width = max(1, -(-(len(counts) - 1) // BARS))
    bars = np.add.reduceat(counts[1:], np.arange(0, len(counts) - 1, width)) if len(counts) > 1 else np.zeros(1)
    bars[0] += counts[0]
    end = width * len(bars)
    figure, (axes,) = _figure(2.4, 1)
    axes.bar(np.arange(len(bars)) * width, bars, width=width * 0.9, align="edge", color=ACCENT)
    axes.set(xlabel="tokens of a sequence", ylabel="sequences", ylim=(0, None), xlim=(0, end))
    if max_length <= 1.25 * end:
        axes.axvline(max_length, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlim(0, max(end, max_length) * 1.02)
    _number(axes.xaxis, axes.yaxis)
    return _svg(figure, "Lengths of sequences", "lengths")


@styled
def norms(counts: Array, edges: Array) -> Svg:
    """Plot a histogram of norms; `counts` [e + 1] are those below, between and above `edges` [e], of equal ratios."""
    from matplotlib.ticker import LogLocator, NullLocator

    seen = np.flatnonzero(counts[1:-1])
    first, last = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 1)
    # at least 8 ranges in a bar, so that bars differ little in width
    width = max(8, -(-(last - first) // BARS))
    bars = np.add.reduceat(counts[1:-1][first:last], np.arange(0, last - first, width))
    borders = edges[np.minimum(first + np.arange(len(bars) + 1) * width, len(edges) - 1)]
    figure, (axes,) = _figure(2.4, 1)
    axes.stairs(bars, borders, fill=True, color=ACCENT)
    if borders[-1] > 3 * borders[0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
    axes.set(xlabel="norm of a vector", ylabel="vectors", ylim=(0, None))
    _number(axes.yaxis)
    return _svg(figure, "Norms of vectors", "norms")


@styled
def curves(name: str, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Svg:
    """Plot the (step, value) of named lines, in a panel for each label; long lines have no markers."""
    figure, found = _figure(0.6 + (2.2 if len(panels) == 1 else 1.3 * len(panels)), len(panels))
    for axes, (label, lines) in zip(found, panels.items(), strict=True):
        most = max(map(len, lines.values()))
        for line, points in lines.items():
            is_long = len(points) > MARKED
            color = ACCENT if len(lines) == 1 or not is_long else WASH
            color = INK if len(lines) > 1 and len(points) < most else color
            axes.plot(*zip(*points, strict=True), "" if is_long else "o-", color=color, ms=3, lw=1.2, label=line)
        axes.set_ylabel(label)
        if len(lines) > 1:
            axes.legend(loc="upper right")
    found[-1].set_xlabel("step")
    _number(found[-1].xaxis)
    return _svg(figure, ", ".join(panels), name)


def _figure(height: float, rows: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, squeeze=False, sharex=True)[:, 0])


def _number(*sides: Any) -> None:
    """Write the ticks of an axis with separators of thousands."""
    for side in sides:
        side.set_major_formatter(lambda x, _: f"{x:,.0f}" if x == round(x) else f"{x:,g}")
        side.get_major_locator().set_params(nbins=6)


def _svg(figure: "Figure", title: str, name: str) -> Svg:
    """Return the figure as an element; ids begin with `name`, because those of a page must differ."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    markup = written.getvalue()
    markup = markup[markup.index("<svg") :]
    markup = re.sub(r' xmlns(?::xlink)?="[^"]*"', "", markup)  # HTML knows them
    markup = re.sub(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{title}">', markup, count=1)
    # the white ground of the figure and of its axes
    markup = re.sub(r'<g id="patch_\d+">\s*<path d="[^"]*"\s+style="fill: #ffffff"/>\s*</g>', "", markup)
    markup = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", markup)
    for placeholder, variable in VARIABLES.items():
        markup = markup.replace(placeholder, f"var({variable})")
    return Svg(markup)
