"""The embedding job: from files of texts to an output file; in order, resumable, each row exactly once."""

import logging
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvec.corpus.copies import local_inputs
from fastvec.embedding.options import EmbedOptions
from fastvec.embedding.plan import EmbedPlan, destination_of, plan_embed, written_to
from fastvec.embedding.run import Run, report_of
from fastvec.errors import DiskFullError, InterruptedRunError
from fastvec.output.ownership import beside
from fastvec.output.writer import Job, Writer, earlier_fingerprint, finished_counts
from fastvec.report import Progress, Report
from fastvec.settings import EncoderSettings
from fastvec.texts.passages import passage_tokens

if TYPE_CHECKING:  # the encoder is only loaded when there is work to do
    from fastvec.encoder import Encoder

logger = logging.getLogger(__name__)


def embed(
    inputs: Any,
    output: str | Path,
    *,
    encoder: "Encoder | EncoderSettings",
    column: str | Sequence[str] | None = None,
    template: str | None = None,
    keep: Sequence[str] | None = (),
    instruction: str | None = None,
    instruction_column: str | None = None,
    prompt_name: str | None = None,
    vector_dtype: str = "float32",
    vector_column: str = "embedding",
    batch_tokens: int | None = None,
    on_error: str = "null",
    max_errors: int | None = None,
    limit: int | None = None,
    hash: bool = False,
    reuse: str | Path | None = None,
    long: str = "truncate",
    overlap: int = 0,
    chunk_tokens: int | None = None,
    late: bool = False,
    chunk_text: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    stop_signal: Callable[[], int | None] = lambda: None,
) -> Report:
    """Embed the text of each row of `inputs` into one Arrow or Parquet file, in order.

    Inputs are files, folders and glob patterns, local or in a store as `output` is; `-` for stdin; datasets of the hub;
    and tables of pyarrow, polars, pandas, DuckDB or `datasets`: one of these or a list. `EmbedOptions` describes the
    options from `column` to `chunk_text`. The same call again resumes an unfinished output and leaves a finished one
    unchanged. If `encoder` is settings, the model is loaded when there is work to do. `progress` is called after each
    chunk. Once `stop_signal` returns a signal, the run stops with InterruptedRunError. Raises FastvecError.
    """
    options = EmbedOptions(
        column=column,
        template=template,
        keep=keep,
        instruction=instruction,
        instruction_column=instruction_column,
        prompt_name=prompt_name,
        vector_dtype=vector_dtype,  # type: ignore[arg-type]  # it is checked there
        vector_column=vector_column,
        on_error=on_error,
        max_errors=max_errors,
        limit=limit,
        hash=hash,
        reuse=reuse,
        long=long,
        overlap=overlap,
        chunk_tokens=chunk_tokens,
        late=late,
        chunk_text=chunk_text,
    )
    settings = encoder if isinstance(encoder, EncoderSettings) else encoder.settings
    with written_to(destination_of(output)) as path, local_inputs(inputs, path, stop_signal) as files:
        plan = plan_embed(files, output, settings=settings, options=options)
        return _embed(plan, encoder, batch_tokens, overwrite, progress, stop_signal)


def _embed(
    plan: EmbedPlan,
    encoder: "Encoder | EncoderSettings",
    batch_tokens: int | None,
    overwrite: bool,
    progress: Callable[[Progress], None],
    stop_signal: Callable[[], int | None],
) -> Report:
    """Do what is left to do of a planned job."""
    if isinstance(encoder, EncoderSettings) and encoder.auto_dtype:
        begun = earlier_fingerprint(plan.output, overwrite=overwrite and plan.remote is None)
        if not begun and plan.remote is not None and not overwrite:
            begun = plan.remote.fingerprint()
        plan = plan.as_begun(begun)
    job = Job(fingerprint=plan.fingerprint, environment={}, limits={})
    check = partial(_require_no_stop, stop_signal, plan)
    counts = None
    if plan.remote is not None:
        counts = plan.remote.finished_counts(job, overwrite=overwrite, check=check)
    if counts is None:
        counts = finished_counts(plan.output, job, overwrite=overwrite)
    if counts is not None:
        return report_of(plan, **counts, already_finished=True)
    _require_space(plan)
    earlier = plan.earlier_vectors()
    plan.corpus.log_text_column()
    if isinstance(encoder, EncoderSettings):
        from fastvec.encoder import Encoder

        encoder = Encoder(plan.settings)
    options, limits = plan.options, dict(encoder.chunk_limits)
    if options.long != "truncate":
        passage_tokens(
            encoder.tokenizer(options.instruction, options.prompt_name), options.chunk_tokens, options.overlap
        )
        limits.pop("row_bytes", None)  # a long text is as much work as its passages
    job = replace(job, environment=encoder.environment, limits=limits)
    with closing(Writer.open(plan.output, job, overwrite=overwrite)) as writer:
        for warning in writer.warnings:
            logger.warning("%s", warning)
        # the run that is resumed may have halved its budget for lack of memory
        budgets = [budget for budget in (batch_tokens, writer.batch_tokens) if budget is not None]
        with _choices(encoder, writer, plan.text_bytes), encoder.batches_of(min(budgets, default=None)):
            report = Run(plan, encoder, writer, earlier, progress, stop_signal).run()
    if plan.remote is not None:
        plan.remote.publish(job, overwrite=overwrite, check=check)
    return report


def _require_no_stop(stop_signal: Callable[[], int | None], plan: EmbedPlan) -> None:
    if (number := stop_signal()) is not None:
        name = signal.Signals(number).name
        raise InterruptedRunError(
            f"stopped by {name} while {plan.output_name} was uploaded: run the same command again to upload it", number
        )


@contextmanager
def _choices(encoder: "Encoder", writer: Writer, text_bytes: int) -> Iterator[None]:
    """Compute by the choices in the journal of the run that is resumed, in this block; a fresh run measures them."""
    if writer.schema is None:
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


def _require_space(plan: EmbedPlan) -> None:
    part = beside(plan.output, ".part")
    have = shutil.disk_usage(plan.output.parent).free + (part.stat().st_size if part.exists() else 0)
    if have < plan.output_bytes:
        raise DiskFullError(
            f"{plan.output} needs at least {plan.output_bytes:,} bytes and {have:,} are free: make room, or choose "
            "--dims or a smaller --vector-dtype"
        )
