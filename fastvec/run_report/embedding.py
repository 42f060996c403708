"""The report on an embedding job: what ran, what came out, how fast, and what the texts and vectors are like."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

from fastvec.embedding.measurements import NORM_EDGES, Measurements
from fastvec.embedding.plan import EmbedPlan
from fastvec.errors import quoted
from fastvec.output.ownership import earlier_fingerprint, errors_path
from fastvec.report import PADDED_BATCH, Report
from fastvec.run_report import plots
from fastvec.run_report.machine import machine, size
from fastvec.run_report.page import Figure, Page, Table, Total, duration, render
from fastvec.run_report.target import require_no_input, require_reportable, write_report
from fastvec.shards.folder import LocalFolder
from fastvec.shards.manifest import ERRORS
from fastvec.shards.record import read_record

logger = logging.getLogger(__name__)

SHOWN_INPUTS, SHOWN_ERRORS = 10, 5
LINE_BYTES = 10_000  # of a row error, which names a file
UNIT_NORM = 1e-3  # vectors in bfloat16 or float16 are normalized to within this
FOOTER = "Made by fastvec embed --report. The page needs no network: it loads nothing."


class EmbeddingPage:
    """The page of a job that is going to run, whose `measurements` are to be made."""

    def __init__(self, path: str | Path, output: str | Path) -> None:
        """Raises UsageError, OutputError or RefusedError if no report can be written at `path`."""
        self._path = require_reportable(path, output)
        self.measurements = Measurements()

    def require_no_input(self, plan: EmbedPlan) -> None:
        """Raise RefusedError if the page would replace an input."""
        require_no_input(self._path, plan.corpus.paths)

    def write(self, plan: EmbedPlan, report: Report, how: Mapping[str, object]) -> None:
        """Write the page of the finished job. Raises OutputError, RefusedError or DiskFullError."""
        job = Embedding(plan=_as_computed(plan), report=report, measurements=self.measurements, how=how)
        write_report(self._path, embedding_html(job), report.output)
        logger.info("the report is %s", self._path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedding:
    """An embedding job that is done, with what is known of it; `how` has the options that do not change the output."""

    plan: EmbedPlan
    report: Report
    measurements: Measurements
    how: Mapping[str, object]

    @property
    def rows_done(self) -> int:
        """The rows of the inputs that were embedded now, and not by an earlier run."""
        return (self.report.input_rows or self.report.rows) - self.report.resumed_rows

    @property
    def texts(self) -> int:
        """The number of texts that are not null: a row has one for each column."""
        return self.report.rows * len(self.plan.vector_columns) - self.report.nulls


def embedding_html(job: Embedding) -> str:
    """Return the page of a job."""
    report, model = job.report, job.plan.settings.checkpoint.name
    finished = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    done = "was already finished; this page was written" if report.already_finished else "finished"
    page = Page(
        title=report.output,
        about=f"embedded with {model} · {done} {finished}",
        totals=list(_totals(job)),
        notes=list(_notes(job)),
        figures=list(_figures(job)),
        tables=[table for table in _tables(job) if table.rows],
        footer=FOOTER,
    )
    return render(page)


def _totals(job: Embedding) -> Iterator[Total]:
    report = job.report
    passages = (
        f"passages of {report.input_rows:,} rows" if report.input_rows else f"{job.plan.settings.dims} dimensions"
    )
    yield Total(name="Rows", value=f"{report.rows:,}", detail=passages)
    if not report.already_finished:
        yield Total(name="Time", value=duration(report.seconds), detail="" if report.shards else "without loading")
        yield Total(name="Rows/s", value=f"{report.rows_per_second:,.0f}")
        yield Total(name="Tokens/s", value=f"{report.tokens_per_second:,.0f}")
    yield Total(name="Tokens", value=f"{report.tokens:,}", detail="encoded, without duplicates")
    if report.peak_memory_bytes is not None:
        yield Total(name="Peak memory", value=size(report.peak_memory_bytes), detail="of this process")
    yield Total(name="Errors", value=f"{report.errors:,}", detail="texts without a vector")


def _notes(job: Embedding) -> Iterator[str]:
    report, measured = job.report, job.measurements
    if report.already_finished:
        yield (
            "The output was already finished, so nothing was embedded, and the counts are those that it contains. Not "
            "known are the time it took, the work of the stages, the lengths of texts, the norms of vectors (fastvec "
            "inspect samples them) and the memory."
        )
        return
    if report.resumed_rows:
        yield (
            f"This run resumed: {report.resumed_rows:,} rows are from an earlier one. Time, rates, stages, lengths and "
            f"norms cover the {job.rows_done:,} rows of this one; the counts cover the whole output."
        )
    if not measured.busy:
        yield (
            "Other processes embedded the shards. They report progress, waits and counts; the work of the stages, the "
            "lengths of texts and the norms of vectors are not known here. The memory is that of the process that "
            "started them."
        )
    if report.missing_shards:
        yield f"Not finished yet: {report.missing_shards:,} shards, which other processes embed."
    if report.torch_ops:
        yield f"These operations ran without their kernels: {', '.join(report.torch_ops)}."
    if report.note:
        yield report.note[0].upper() + report.note[1:]


def _figures(job: Embedding) -> Iterator[Figure]:
    measured, report = job.measurements, job.report
    points = measured.points
    if points[-1].seconds > 0:
        series = {"rows/s": [point.rows for point in points], "tokens/s": [point.tokens for point in points]}
        drawn = plots.rates([point.seconds for point in points], series)
        yield Figure(title="Speed", caption="Rows and tokens a second, over the time of this run.", svg=drawn)
    if measured.busy:
        caption = (
            f"Bottleneck: {report.bottleneck or max(measured.busy, key=measured.busy.__getitem__)}, the stage that "
            "worked longest. Stages run at the same time."
        )
        order = sorted(measured.busy, key=("read", "tokenize", "encode", "write").index)
        drawn = plots.stages({name: measured.busy[name] for name in order}, report.waits)
        yield Figure(title="Stages", caption=caption, svg=drawn)
    if measured.sequences.any():
        yield _lengths(job)
    if measured.vectors and measured.norm_range[1] > measured.norm_range[0] * (1 + UNIT_NORM):
        least, most = measured.norm_range
        caption = (
            f"{least:,.4g} to {most:,.4g}, mean {measured.norm_sum / measured.vectors:,.4g}, before they are stored."
        )
        drawn = plots.norms(measured.norms, NORM_EDGES)
        yield Figure(title="Norms of vectors", caption=caption, svg=drawn)


def _lengths(job: Embedding) -> Figure:
    counts, most = job.measurements.sequences, job.plan.settings.max_length
    sums = counts.cumsum()
    median, p95 = (int((sums >= share * sums[-1]).argmax()) for share in (0.5, 0.95))
    caption = (
        f"{int(sums[-1]):,} sequences, with instructions and special tokens: median {median:,}, 95th percentile "
        f"{p95:,}, longest {len(counts) - 1:,} tokens. The limit is {most:,}; "
    )
    long, truncated = job.plan.options.long, job.report.truncated
    if long == "truncate":
        caption += f"{truncated:,} texts ({_share(truncated, job.texts)}) were truncated."
    else:
        caption += f"longer texts are {'averaged over' if long == 'mean' else 'rows of'} passages."
    return Figure(title="Lengths", caption=caption, svg=plots.lengths(counts, most))


def _tables(job: Embedding) -> Iterator[Table]:
    yield Table(title="What was run", rows=[*_run(job)])
    yield Table(title="Counts", caption="Of the whole output.", rows=[*_counts(job)])
    if job.report.errors:
        caption = f"{job.report.errors:,} texts have no vector. The first of them, from {_errors_name(job.plan)}:"
        yield Table(
            title="Row errors", caption=caption, rows=[*_errors(job.plan)] or [("not shown", "the file is elsewhere")]
        )
    if job.report.waits and not job.measurements.busy:
        rows = [(stage, f"{seconds:,.1f} s") for stage, seconds in sorted(job.report.waits.items())]
        yield Table(
            title="Waits", caption="How long each stage waited for its neighbours, in all processes.", rows=rows
        )
    if not job.report.already_finished:
        yield Table(title="Computation", rows=[*_computation(job)])
    yield Table(title="Machine", rows=machine("" if job.report.already_finished else job.plan.settings.device))


def _run(job: Embedding) -> Iterator[tuple[str, str]]:
    plan, corpus = job.plan, job.plan.corpus
    settings, options, checkpoint = plan.settings, plan.options, plan.settings.checkpoint
    files = [f"{file.uri} ({file.rows:,} rows)" for file in corpus.files[:SHOWN_INPUTS]]
    if len(corpus.files) > SHOWN_INPUTS:
        files.append(f"and {len(corpus.files) - SHOWN_INPUTS:,} more")
    yield "inputs", "\n".join(files)
    yield "output", plan.output_name
    is_column = all(template.is_column for template in corpus.templates)
    yield "texts", f"column {' and '.join(corpus.columns)}" if is_column else f"template {corpus.columns[0]}"
    instruction = settings.prefix(options.instruction, options.prompt_name)
    if corpus.instruction_column is not None:
        instruction = f"of the column {corpus.instruction_column}"
    yield "instruction", instruction or "none"
    yield "kept columns", ", ".join(corpus.kept_schema.names) or "none"
    yield "model", "\n".join([checkpoint.name, *(f"adapter {name}" for name in checkpoint.added)])
    yield "weights", checkpoint.weights_hash[:12] + (f", revision {checkpoint.revision}" if checkpoint.revision else "")
    attention = "bidirectional" if settings.bidirectional else "causal"
    yield "attention", f"{attention} ({settings.bidirectional_reason})"
    yield "pooling", f"{settings.pooling}, {settings.pooled_tokens} tokens"
    normalized = "normalized" if settings.normalize else "not normalized"
    columns = " and ".join(plan.vector_columns)
    yield "vectors", f"{columns}: {settings.dims:,} dimensions, {options.vector_dtype}, {normalized}"
    long = {"truncate": "truncated", "mean": "the mean of their passages", "chunks": "a row for each passage"}
    yield "long texts", f"above {settings.max_length:,} tokens: {long[options.long]}"
    if plan.earlier is not None:
        yield "reused", str(plan.earlier.output.path)
    yield from ((name, str(value)) for name, value in job.how.items() if value is not None)


def _counts(job: Embedding) -> Iterator[tuple[str, str, str]]:
    report, texts = job.report, job.texts
    meanings = {
        "nulls": "texts that are null",
        "empty": "texts that are empty or white space",
        "truncated": f"texts that lost tokens to the limit, {_share(report.truncated, texts)} of all",
        "repaired": "texts that were not valid UTF-8",
        "duplicates": f"texts equal to another one of their chunk, encoded once, {_share(report.duplicates, texts)}",
        "reused": "texts with a vector of the earlier output",
        "errors": "texts without a vector because of an error",
        "tokens": "tokens that were encoded",
    }
    if report.input_rows:
        yield "input rows", f"{report.input_rows:,}", "rows of the inputs"
    yield "rows", f"{report.rows:,}", "passages" if report.input_rows else "rows of the inputs and of the output"
    if report.shards:
        yield "shards", f"{report.shards:,}", "files of the output" if not report.missing_shards else "of this process"
    for name, meaning in meanings.items():
        yield name, f"{getattr(report, name):,}", meaning


def _computation(job: Embedding) -> Iterator[tuple[str, str]]:
    report, settings, measured = job.report, job.plan.settings, job.measurements
    yield "device", report.device
    yield "dtype", settings.arithmetic
    if measured.busy:
        yield "padding saved", f"{report.padding_saved:.1%} of the tokens of batches of {PADDED_BATCH} texts, padded"
    if measured.vectors:
        least, most = measured.norm_range
        yield "norms", f"{least:.4f} to {most:.4f}, mean {measured.norm_sum / measured.vectors:.4f}"
    read_back = {True: "yes, from the disk, before it was published", False: "no", None: "not known"}[report.verified]
    yield "read back", read_back
    if report.agreement is not None:
        yield (
            "quantized",
            ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in report.agreement.items()),
        )
    if report.choices is not None:
        yield "CPU choices", "\n".join(f"{name}: {json.dumps(value)}" for name, value in report.choices.items())


def _errors_name(plan: EmbedPlan) -> str:
    if plan.folder is not None:
        return f"{plan.folder.location.rstrip('/')}/{ERRORS}"
    return errors_path(plan.output).name if plan.remote is not None else str(errors_path(plan.output))


def _errors(plan: EmbedPlan) -> Iterator[tuple[str, str]]:
    """Yield the first row errors; none if they are in a store, or not published yet."""
    if plan.remote is not None or (plan.folder is not None and not isinstance(plan.folder, LocalFolder)):
        return
    path = errors_path(plan.output) if not isinstance(plan.folder, LocalFolder) else plan.folder.path / ERRORS
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in islice(iter(lambda: file.readline(LINE_BYTES), b""), SHOWN_ERRORS):
            try:
                error = json.loads(line)
                place = {name: value for name, value in error.items() if name not in ("row", "code")}
                described = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in place.items())
                yield f"row {error['row']:,}", f"{error['code']}\n{described}"
            except (ValueError, KeyError, TypeError, AttributeError):
                yield "line", quoted(line)


def _as_computed(plan: EmbedPlan) -> EmbedPlan:
    """Return the plan of a finished job in the dtype that it was begun in, if fastvec chose the dtype."""
    if not plan.settings.auto_dtype:
        return plan
    if plan.folder is not None:
        record = read_record(plan.folder)
        return plan if record is None else plan.as_begun(record.fingerprint)
    return plan.as_begun(earlier_fingerprint(plan.output) if plan.remote is None else plan.remote.fingerprint())


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"
