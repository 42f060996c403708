"""The result of an evaluation: a table for people, JSON, and a plot.

Scores are shares (or correlations) in JSON, and multiplied by 100 in the table and the plot, as is usual.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

BEST = "*"
NOTHING = "-"
PLOTS_ACROSS = 3
FOOTER = "±: half of the 95 % interval over {samples:,} bootstrap samples; {best}: the best of its column"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How much higher a score is than that of the contestant `other`, with its 95 % interval."""

    other: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A contestant's score by a measure of a task, from 0 (a correlation: from -1) to 1, with its 95 % interval.

    `differences` are from the best baseline, and from the first model.
    """

    task: str
    measure: str
    name: str
    baseline: bool
    value: float
    low: float
    high: float
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskInfo:
    """A task, how large it is, and what was left out of it."""

    name: str
    kind: str
    size: str
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """The scores of all contestants on all tasks, in the order of the table: tasks, measures, contestants.

    `names` are the contestants, baselines first; `models` says with which weights and options the others ran.
    """

    tasks: tuple[TaskInfo, ...]
    names: tuple[str, ...]
    scores: tuple[Score, ...]
    models: tuple[dict[str, Any], ...]
    samples: int
    seconds: float

    @property
    def return_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def columns(self) -> list[tuple[str, str]]:
        """The tasks with their measures."""
        return list(dict.fromkeys((score.task, score.measure) for score in self.scores))

    def of(self, column: tuple[str, str]) -> dict[str, Score]:
        """Return the scores of a task by a measure, by contestants."""
        return {score.name: score for score in self.scores if (score.task, score.measure) == column}

    def __str__(self) -> str:
        columns = self.columns
        tasks = [task if n == 0 or columns[n - 1][0] != task else "" for n, (task, _) in enumerate(columns)]
        lines = [["× 100", *tasks], ["", *(measure for _, measure in columns)]]
        lines += [[name, *(self._cell(name, column) for column in columns)] for name in self.names]
        baselines = {score.name for score in self.scores if score.baseline}
        models = [name for name in self.names if name not in baselines]
        if baselines:
            lines += self._differences("against the best baseline", models, baselines)
        if len(models) > 1:
            lines += self._differences(f"against {models[0]}", models[1:], {models[0]})
        width = max(len(task.name) for task in self.tasks)
        about = [f"{task.name:{width}}  {'; '.join([task.size, *task.notes])}" for task in self.tasks]
        return "\n".join([*_aligned(lines), "", *about, FOOTER.format(samples=self.samples, best=BEST)])

    def _cell(self, name: str, column: tuple[str, str]) -> str:
        found = self.of(column)
        if name not in found:
            return NOTHING
        best = max(score.value for score in found.values())
        return _shown(found[name], "") + BEST * (len(found) > 1 and found[name].value == best)

    def _differences(self, title: str, names: Sequence[str], others: set[str]) -> list[list[str]]:
        lines = [[], [title]]
        for name in names:
            cells = []
            for column in self.columns:
                own = self.of(column)[name].differences
                cells.append(next((_shown(one, "+") for one in own if one.other in others), NOTHING))
            lines.append([name, *cells])
        return lines


def _shown(one: Score | Difference, sign: str) -> str:
    return f"{100 * one.value:{sign}.1f} ±{50 * (one.high - one.low):.1f}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines with their cells in columns; a line of a single cell has none."""
    cells = [line for line in lines if len(line) > 1]
    widths = [max(len(line[n]) for line in cells) for n in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines]


def draw(report: EvalReport, file: BinaryIO) -> None:
    """Write a PNG of bars with their intervals, a plot for each measure of each task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = report.columns
    across = min(len(columns), PLOTS_ACROSS)
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
