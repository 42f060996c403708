"""The course of a training: a JSON line for every step and evaluation, curves as a PNG, TensorBoard where installed.

A run that resumes drops the lines after its checkpoint, and correlations on other pairs: the file reads as that of one
run.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

METRICS, CURVES, TENSORBOARD = "metrics.jsonl", "curves.png", "tensorboard"


class Metrics:
    """The measures in a folder, and what appends to them. `rows` are all lines so far."""

    def __init__(self, folder: Path, *, step: int, pairs: str | None = None) -> None:
        """Keep what was measured up to `step`, of correlations those on the scored pairs with the digest `pairs`."""
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
        """Step and value of each line that has `name`."""
        return [(row["step"], row[name]) for row in self.rows if name in row]

    def close(self) -> None:
        """Draw the curves, where matplotlib is installed."""
        if self._board is not None:
            self._board.close()
        try:
            draw(self, self._folder / CURVES)
        except ImportError:
            logger.info('no %s: for curves and TensorBoard, pip install "fastvec[train]"', CURVES)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; none where there is no file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # a crash tore the last one
            break
    return rows


def draw(curves: Metrics, path: Path) -> None:
    """The loss of training and of held-out rows, and Spearman's correlation below. Raises ImportError."""
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
