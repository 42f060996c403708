"""The report on an adaptation: what ran, the curves of its metrics, and what it measured before and after.

Everything but the time and the memory is in the finished folder, so the page of an earlier run has the same figures.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fastvec.checkpoints.checkpoint import RECORD
from fastvec.errors import OutputError
from fastvec.report import AdaptReport
from fastvec.run_report import plots
from fastvec.run_report.machine import machine, size
from fastvec.run_report.page import Figure, Page, Table, Total, duration, render
from fastvec.run_report.target import require_no_input, require_reportable, write_report
from fastvec.training.metrics import METRICS, read_metrics

logger = logging.getLogger(__name__)

SHOWN_FILES = 10
POINTS = 1000  # of a curve, at most
MEASURES = {  # prefix of the report's fields: what they are
    "loss": "training loss",
    "held_out": "held-out loss",
    "accuracy": "held-out accuracy",
    "cosine": "held-out cosine",
    "spearman": "Spearman's correlation",
}
FOOTER = "Made by fastvec adapt --report. The page needs no network: it loads nothing."


class AdaptationPage:
    """The page of an adaptation that is going to run."""

    def __init__(self, path: str | Path, output: str | Path, inputs: Iterable[str | Path]) -> None:
        """Raises UsageError, OutputError or RefusedError if no report can be written at `path`."""
        self._path = require_reportable(path, output)
        require_no_input(self._path, map(Path, inputs))

    def write(self, report: AdaptReport) -> None:
        """Write the page of the finished adaptation. Raises OutputError, RefusedError or DiskFullError."""
        write_report(self._path, adaptation_html(report), report.output)
        logger.info("the report is %s", self._path)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Adaptation:
    """A finished adaptation: its report, the record in its folder, its metrics."""

    report: AdaptReport
    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]

    def points(self, name: str) -> list[tuple[float, float]]:
        """Return the step and the value of the lines that have `name`, at most `POINTS` evenly spaced ones."""
        found = [(row["step"], row[name]) for row in self.metrics if name in row]
        return found[:: -(-len(found) // POINTS) or 1]


def adaptation_html(report: AdaptReport) -> str:
    """Return the page of an adaptation, from its finished folder. Raises OutputError if the folder is damaged."""
    folder = Path(report.output)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        done = _Adaptation(report=report, record=record, metrics=read_metrics(folder / METRICS))
        page = Page(
            title=report.output,
            about=f"{record['base']['model']} adapted with {report.objective} · {_when(report)}",
            totals=list(_totals(done)),
            notes=list(_notes(done)),
            figures=list(_figures(done)),
            tables=list(_tables(done)),
            footer=FOOTER,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{folder} has no {RECORD} and {METRICS} that a report can be made of: {error!r}") from error
    return render(page)


def _when(report: AdaptReport) -> str:
    done = "was already finished; this page was written" if report.already_finished else "finished"
    return f"{done} {datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z')}"


def _totals(done: _Adaptation) -> Iterator[Total]:
    report = done.report
    yield Total(name="Steps", value=f"{report.steps:,}", detail=report.objective)
    if not report.already_finished:
        yield Total(name="Time", value=duration(report.seconds), detail="without loading")
    yield Total(name="Tokens", value=f"{report.tokens:,}", detail="of all steps")
    for name in MEASURES:
        before, after = _before_and_after(report, name)
        if before is not None and after is not None:
            yield Total(name=MEASURES[name].capitalize(), value=f"{after:.3f}", detail=f"from {before:.3f}")


def _before_and_after(report: AdaptReport, name: str) -> tuple[float | None, float | None]:
    when = ("first", "last") if name == "loss" else ("before", "after")
    before, after = (getattr(report, f"{name}_{one}") for one in when)
    return before, after


def _notes(done: _Adaptation) -> Iterator[str]:
    report = done.report
    if report.already_finished:
        yield "The adaptation was already finished: the figures and numbers are those in its folder."
    if report.resumed_steps:
        yield (
            f"This run resumed at step {report.resumed_steps:,}. The time, the memory and the counts of rows "
            "are of this run; the curves are of all steps."
        )


def _figures(done: _Adaptation) -> Iterator[Figure]:
    losses = {"training": done.points("loss"), "held out": done.points("held_out_loss")}
    measured = {
        "accuracy": done.points("held_out_accuracy"),
        "cosine": done.points("held_out_cosine"),
        "Spearman": done.points("spearman"),
    }
    steps = {"learning rate": done.points("learning_rate"), "gradient norm": done.points("gradient_norm")}
    losses, measured, steps = ({name: x for name, x in lines.items() if x} for lines in (losses, measured, steps))
    if losses:
        drawn = plots.curves("loss", {"loss": losses})
        yield Figure(title="Loss", caption="Of each step's batch, and on the rows that are held out.", svg=drawn)
    if measured:
        drawn = plots.curves("measures", {name: {name: points} for name, points in measured.items()})
        yield Figure(title="Evaluations", caption="On held-out rows and scored pairs, at intervals.", svg=drawn)
    if steps:
        drawn = plots.curves("steps", {name: {name: points} for name, points in steps.items()})
        yield Figure(title="Optimizer", caption="Of each step; the norm is that before clipping.", svg=drawn)


def _tables(done: _Adaptation) -> Iterator[Table]:
    report, base, made = done.report, done.record["base"], dict(done.record["fingerprint"])
    files = [str(file[0]) for corpus in made.pop("data") for file in corpus]
    more = [f"and {len(files) - SHOWN_FILES:,} more"] * (len(files) > SHOWN_FILES)
    rows = [
        ("data", "\n".join([*files[:SHOWN_FILES], *more])),
        ("output", report.output),
        ("model", "\n".join([base["model"], *(f"adapter {name}" for name in base["adapters"])])),
        ("weights", made.pop("weights")[:12] + (f", revision {base['revision']}" if base["revision"] else "")),
    ]
    yield Table(title="What was run", rows=rows)
    if not report.already_finished:
        read = {"rows": "that this run read", "nulls": "rows without a text", "repaired": "texts that were not UTF-8"}
        counts = [(name, f"{getattr(report, name):,}", meaning) for name, meaning in read.items()]
        yield Table(title="Rows", rows=counts)
    memory = (
        [] if report.peak_memory_bytes is None else [("peak memory", f"{size(report.peak_memory_bytes)}, this process")]
    )
    yield Table(title="Machine", rows=[*machine(""), *([] if report.already_finished else memory)])
    options = [(name.replace("_", " "), _shown(value)) for name, value in made.items() if name != "tokenizer"]
    yield Table(title="Options", caption="What identifies the run.", rows=options)


def _shown(value: object) -> str:
    if value is None or value == "":
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
