"""Embeds a planned job into one file: in order, resumable, each row exactly once."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fastvec.embedding.measurements import Measurements
from fastvec.embedding.plan import EmbedPlan
from fastvec.embedding.run import Run, report_of
from fastvec.errors import DiskFullError
from fastvec.output.earlier import EarlierVectors
from fastvec.output.ownership import beside
from fastvec.output.vector_column import FloatArray
from fastvec.output.writer import Job, Writer, earlier_fingerprint, finished_counts
from fastvec.report import Progress, Report
from fastvec.settings import EncoderSettings
from fastvec.system.stop_signals import require_no_signal
from fastvec.texts.passages import passage_tokens

if TYPE_CHECKING:  # the encoder is only loaded when there is work to do
    from fastvec.encoder import Encoder

logger = logging.getLogger(__name__)


def embed_file(
    plan: EmbedPlan,
    encoder: "Encoder | EncoderSettings",
    *,
    batch_tokens: int | None,
    overwrite: bool,
    progress: Callable[[Progress], None],
    stop_signal: Callable[[], int | None],
    measurements: Measurements | None = None,
) -> Report:
    """Do what is left to do of a job whose output is one file. Raises FastvecError."""
    if plan.settings.auto_dtype:
        begun = earlier_fingerprint(plan.output, overwrite=overwrite and plan.remote is None)
        if not begun and plan.remote is not None and not overwrite:
            begun = plan.remote.fingerprint()
        plan = plan.as_begun(begun)
    job = Job(fingerprint=plan.fingerprint, environment={}, limits={})
    stopped = f"{plan.output_name} was uploaded: run the same command again to upload it"
    check = partial(require_no_signal, stop_signal, stopped)
    counts = None
    if plan.remote is not None:
        counts = plan.remote.finished_counts(job, overwrite=overwrite, check=check)
    if counts is None:
        counts = finished_counts(plan.output, job, overwrite=overwrite)
    if counts is not None:
        return report_of(plan, **counts, already_finished=True)
    require_space(plan)
    earlier = plan.earlier_vectors()
    plan.corpus.log_text_column()
    if isinstance(encoder, EncoderSettings):
        from fastvec.encoder import Encoder

        encoder = Encoder(plan.settings)
    limits = chunk_limits(plan, encoder, plan.shard_rows)
    job = replace(job, environment=encoder.environment, limits=limits)
    report = write_file(
        plan,
        encoder,
        job,
        earlier,
        batch_tokens=batch_tokens,
        overwrite=overwrite,
        progress=progress,
        stop_signal=stop_signal,
        measurements=measurements,
    )
    if plan.remote is not None:
        plan.remote.publish(job, overwrite=overwrite, check=check)
    return report


def write_file(
    plan: EmbedPlan,
    encoder: "Encoder",
    job: Job,
    earlier: EarlierVectors | None,
    *,
    batch_tokens: int | None,
    overwrite: bool = False,
    ranges: FloatArray | None = None,
    progress: Callable[[Progress], None],
    stop_signal: Callable[[], int | None],
    measurements: Measurements | None = None,
) -> Report:
    """Write the output of `job`, or resume it; `ranges` [D] are those of an int8 column that other files share."""
    with closing(Writer.open(plan.output, job, overwrite=overwrite)) as writer:
        for warning in writer.warnings:
            logger.warning("%s", warning)
        # the run that is resumed may have halved its budget for lack of memory
        budgets = [budget for budget in (batch_tokens, writer.batch_tokens) if budget is not None]
        with _choices(encoder, writer, plan.text_bytes), encoder.batches_of(min(budgets, default=None)):
            run = Run(plan, encoder, writer, earlier, progress, stop_signal, ranges=ranges, measurements=measurements)
            return run.run()


def chunk_limits(plan: EmbedPlan, encoder: "Encoder", shard_rows: int) -> dict[str, int]:
    """Return the chunk limits of a new run. Raises UsageError if no passage fits into a sequence."""
    options, limits = plan.options, {**encoder.chunk_limits, "shard_rows": shard_rows}
    if options.long != "truncate":
        tokenizer = encoder.tokenizer(options.instruction, options.prompt_name)
        passage_tokens(tokenizer, options.chunk_tokens, options.overlap)
        limits.pop("row_bytes", None)  # a long text is as much work as its passages
    return limits


@contextmanager
def _choices(encoder: "Encoder", writer: Writer, text_bytes: int) -> Iterator[None]:
    """Compute in this block by the choices of the job or of the run that is resumed; a fresh run measures them."""
    if writer.schema is None and writer.choices is None:
        encoder.measure_for(text_bytes)
        writer.choices = encoder.choices
    own = encoder.choices
    if own is None or writer.choices in (None, own):
        yield
        return
    encoder.choose(writer.choices)
    try:
        yield
    finally:
        encoder.choose(own)


def require_space(plan: EmbedPlan) -> None:
    """Raise DiskFullError if the output does not fit on the disk."""
    have = shutil.disk_usage(plan.output.parent).free
    with suppress(FileNotFoundError):  # also if another run finishes it at this moment
        have += beside(plan.output, ".part").stat().st_size
    if have < plan.output_bytes:
        raise DiskFullError(
            f"{plan.output} needs at least {plan.output_bytes:,} bytes and {have:,} are free: make room, or choose "
            "--dims or a smaller --vector-dtype"
        )
