"""Records training metrics: a JSON line per step and evaluation, curves as a PNG, and TensorBoard if installed.

A run that resumes drops the lines after its checkpoint, and the correlations on other pairs. The file then looks as if
the run had never stopped.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

METRICS, CURVES, TENSORBOARD = "metrics.jsonl", "curves.png", "tensorboard"


class Metrics:
    """The metrics file of a folder: reads it and appends to it. `rows` has all lines so far."""

    def __init__(self, folder: Path, *, step: int, pairs: str | None = None) -> None:
        """Keep the lines up to `step`, without correlations on scored pairs whose digest is not `pairs`."""
        self._path, self._folder = folder / METRICS, folder
        self.rows: list[dict[str, Any]] = []
        for row in read_metrics(self._path):
            if row.get("pairs") != pairs:
                row = {name: value for name, value in row.items() if name not in ("spearman", "pairs")}
            if row["step"] <= step and len(row) > 1:
                self.rows.append(row)
        self._path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        self._board = _tensorboard(folder / TENSORBOARD, purge_after=step)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append lines, each with a `step`."""
        new = [dict(row) for row in rows]
        self.rows += new
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
        if self._board is not None:
            for row in new:
                for name, value in row.items():
                    if name not in ("step", "pairs"):
                        self._board.add_scalar(name, value, row["step"])

    def values(self, name: str) -> list[tuple[int, float]]:
        """Return the step and the value of each line that has `name`."""
        return [(row["step"], row[name]) for row in self.rows if name in row]

    def close(self) -> None:
        """Close TensorBoard's file and end the thread that writes it."""
        if self._board is not None:
            self._board.close()

    def draw(self) -> None:
        """Draw the curves if matplotlib is installed."""
        try:
            draw(self, self._folder / CURVES)
        except ImportError:
            logger.info('%s was not written: for curves and TensorBoard, pip install "fastvec[train]"', CURVES)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file before the first invalid one; an empty list if there is no file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # a crash truncated the last line
            break
    return rows


def draw(curves: Metrics, path: Path) -> None:
    """Plot training and held-out loss, and below them Spearman's correlation. Raises ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [("loss", "held_out_loss"), *([("spearman",)] if curves.values("spearman") else [])]
    figure = Figure(figsize=(8, 3.2 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, names in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for name in names:
            points = curves.values(name)
            if points:
                marker = "" if name == "loss" else "o"
                axes.plot(*zip(*points, strict=True), marker=marker, alpha=0.5 if name == "loss" else 1, label=name)
        axes.set_xlabel("step")
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _tensorboard(folder: Path, *, purge_after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=purge_after + 1)
