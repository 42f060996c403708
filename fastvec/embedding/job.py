"""The embedding job: read, tokenize, pack, encode and write; in order, resumable, each row exactly once.

Every stage works on chunks, which are runs of consecutive input rows. A batch never crosses a chunk boundary, and a
chunk becomes one record batch of the output. A resumed run therefore makes the same batches as an uninterrupted one.
"""

import json
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.checkpoints import bundled
from fastvec.corpus.reader import Chunk, ChunkLimits
from fastvec.embedding.plan import EmbedPlan, plan_embed
from fastvec.embedding.tokenized_chunks import TokenizedChunk, delayed, tokenize_chunks
from fastvec.errors import DiskFullError, InterruptedRunError, RowErrorsError
from fastvec.output.ownership import beside
from fastvec.output.vector_column import FloatArray, ranges_from_json, ranges_of, to_column
from fastvec.output.writer import Job, RowError, Writer, earlier_fingerprint, finished_counts
from fastvec.report import Progress, Report, padded_tokens, peak_memory_bytes
from fastvec.settings import EncoderSettings
from fastvec.system.pipeline import Pipeline, StoppedError

if TYPE_CHECKING:  # the encoder is only loaded when there is work to do
    from fastvec.encoder import Encoder, SubmittedChunk

logger = logging.getLogger(__name__)

FLOAT16_MAX = 65504.0
# The first vectors set the ranges of an int8 column and decide whether a quantized model is accurate enough. In such
# jobs nothing is written before this many texts have a vector, or this many rows were encoded, or the input ends.
FIRST_TEXTS, FIRST_ROWS = 256, 65_536


def embed(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    encoder: "Encoder | EncoderSettings",
    column: str | None = None,
    keep: Sequence[str] | None = (),
    instruction: str | None = None,
    prompt_name: str | None = None,
    vector_dtype: str = "float32",
    vector_column: str = "embedding",
    batch_tokens: int | None = None,
    on_error: str = "null",
    max_errors: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    stop_signal: Callable[[], int | None] = lambda: None,
) -> Report:
    """Embed the text column of Parquet or Arrow files into one Arrow or Parquet file, one row per input row, in order.

    The same call again resumes an unfinished output and leaves a finished one unchanged. If `encoder` is settings, the
    model is only loaded when there is work to do, in the dtype of an earlier run if the user chose none. `keep`
    names the columns to copy; None copies all of them. `progress` is called after each chunk. `stop_signal` is called
    often; once it returns a signal number, the run stops and raises InterruptedRunError.

    Raises FastvecError; the subclass says what went wrong. Rows that are already durable are kept.
    """
    plan = plan_embed(
        inputs,
        output,
        settings=encoder if isinstance(encoder, EncoderSettings) else encoder.settings,
        column=column,
        keep=keep,
        instruction=instruction,
        prompt_name=prompt_name,
        vector_dtype=vector_dtype,
        vector_column=vector_column,
        on_error=on_error,
        max_errors=max_errors,
        limit=limit,
    )
    if isinstance(encoder, EncoderSettings) and encoder.auto_dtype:
        plan = plan.as_begun(earlier_fingerprint(plan.output, overwrite=overwrite))
    job = Job(fingerprint=plan.fingerprint, environment={}, limits={})
    counts = finished_counts(plan.output, job, overwrite=overwrite)
    if counts is not None:
        return _report(plan, **counts, already_finished=True)
    _require_space(plan)
    plan.corpus.log_text_column()
    if isinstance(encoder, EncoderSettings):
        from fastvec.encoder import Encoder

        encoder = Encoder(plan.settings)
    job = replace(job, environment=encoder.environment, limits=encoder.chunk_limits)
    with closing(Writer.open(plan.output, job, overwrite=overwrite)) as writer:
        for warning in writer.warnings:
            logger.warning("%s", warning)
        with _choices(encoder, writer, plan.text_bytes), _token_budget(encoder, batch_tokens, writer.batch_tokens):
            return _Run(plan, encoder, writer, progress, stop_signal).run()


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


@contextmanager
def _token_budget(encoder: "Encoder", asked: int | None, earlier: int | None) -> Iterator[None]:
    """Set the token budget of a run: the smaller of `asked` and the `earlier` run's, or the encoder's own without both.

    The earlier run may have halved its budget for lack of memory. Afterwards the encoder's own budget is restored,
    unless this run ran out of memory.
    """
    own = encoder.batch_tokens
    settled = encoder.batch_tokens = min((budget for budget in (asked, earlier) if budget is not None), default=own)
    try:
        yield
    finally:
        if encoder.batch_tokens == settled:
            encoder.batch_tokens = own


def _require_space(plan: EmbedPlan) -> None:
    part = beside(plan.output, ".part")
    have = shutil.disk_usage(plan.output.parent).free + (part.stat().st_size if part.exists() else 0)
    if have < plan.output_bytes:
        raise DiskFullError(
            f"{plan.output} needs at least {plan.output_bytes:,} bytes and {have:,} are free: make room, or choose "
            "--dims or a smaller --vector-dtype"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _EncodedChunk:
    chunk: Chunk
    vectors: FloatArray  # [rows, D]
    valid: npt.NDArray[np.bool_]  # [rows], whether a row has a vector
    counts: Mapping[str, int]
    errors: Sequence[RowError]
    batch_tokens: int
    padded_tokens: int


class _Run:
    """Runs the stages of one job. The last stage, writing, runs in the caller's thread."""

    def __init__(
        self,
        plan: EmbedPlan,
        encoder: "Encoder",
        writer: Writer,
        progress: Callable[[Progress], None],
        stop_signal: Callable[[], int | None],
    ) -> None:
        self._plan, self._encoder, self._writer = plan, encoder, writer
        self._started, self._progress, self._stop_signal = time.perf_counter(), progress, stop_signal
        self._resumed_rows = self._rows = writer.rows
        self._tokens = self._padded_tokens = 0
        self._ranges: FloatArray | None = None
        self._held: list[_EncodedChunk] = []  # encoded, not written yet

    def run(self) -> Report:
        writer, plan = self._writer, self._plan
        if writer.rows:
            logger.info("resuming %s at row %s of %s", plan.output, f"{writer.rows:,}", f"{plan.corpus.rows:,}")
        chunks = plan.corpus.chunks(ChunkLimits(**writer.limits), first_row=writer.rows, first_index=writer.chunks)
        tokenizer = self._encoder.tokenizer(plan.instruction, plan.prompt_name)
        try:
            with Pipeline(lambda: self._stop_signal() is not None) as pipeline:
                read = pipeline.run_ahead("read", chunks, feeds="tokenize", depth=2)
                tokenized = pipeline.run_ahead("tokenize", tokenize_chunks(read, tokenizer), feeds="encode", depth=4)
                encoded = self._encode(tokenized, pipeline)
                if self._encoder.settings.device == "cpu":
                    # OpenMP's threads sleep between the operations of a thread other than the first: 7 to 31 % slower
                    encoded = pipeline.run_here("encode", encoded)
                else:
                    encoded = pipeline.run_ahead("encode", encoded, feeds="write", depth=2)
                for done in encoded:
                    with pipeline.working("write"):
                        self._held.append(done)
                        if self._can_start_output():
                            self._write_held()
                    self._progress(self._state(pipeline))
        except StoppedError:
            raise self._interrupted() from None
        self._write_held()
        writer.finish(_error_lines(plan, writer.errors))
        return self._finished_report(pipeline)

    def _encode(self, chunks: Iterator[TokenizedChunk], pipeline: Pipeline) -> Iterator[_EncodedChunk]:
        begun = ((chunk, self._encoder.begin(chunk.texts, pipeline.check)) for chunk in chunks)
        for chunk, vectors in delayed(begun, by=self._encoder.chunks_ahead):
            yield self._embedded(chunk, vectors)

    def _embedded(self, chunk: TokenizedChunk, begun: "SubmittedChunk") -> _EncodedChunk:
        encoded = self._encoder.finish(begun)
        failed = dict(encoded.failed)
        if self._plan.vector_dtype == "float16":
            too_large = (np.abs(encoded.vectors) > FLOAT16_MAX).any(axis=1)
            failed |= {int(index): "float16_overflow" for index in np.flatnonzero(too_large)}
        rows = np.flatnonzero(chunk.valid)
        vectors = encoded.vectors
        if len(rows) < len(chunk.valid):
            vectors = np.zeros((len(chunk.valid), self._encoder.dims), dtype=np.float32)
            vectors[rows] = encoded.vectors
        valid = chunk.valid.copy()
        valid[rows[list(failed)]] = False
        first_row = chunk.chunk.first_row
        return _EncodedChunk(
            chunk=chunk.chunk,
            vectors=vectors,
            valid=valid,
            counts={**chunk.counts, "errors": len(failed)},
            errors=[RowError(row=first_row + int(rows[i]), code=code) for i, code in sorted(failed.items())],
            batch_tokens=begun.batch_tokens,
            padded_tokens=padded_tokens(chunk.texts.lengths),
        )

    def _can_start_output(self) -> bool:
        """Return whether enough vectors are held to start the output."""
        if self._writer.schema is not None or (self._plan.vector_dtype != "int8" and not self._plan.settings.quantize):
            return True
        valid = np.concatenate([done.valid for done in self._held])
        return bool(valid.sum() >= FIRST_TEXTS or len(valid) >= FIRST_ROWS)

    def _write_held(self) -> None:
        self._begin()
        for done in self._held:
            self._write(done)
        self._held.clear()

    def _write(self, done: _EncodedChunk) -> None:
        self._check_errors(done.errors)
        plan, chunk = self._plan, done.chunk
        rows = np.arange(chunk.first_row, chunk.first_row + len(done.valid), dtype=np.int64)
        column = to_column(done.vectors, done.valid, plan.vector_dtype, self._ranges)
        batch = pa.RecordBatch.from_arrays([*chunk.kept.columns, pa.array(rows), column], schema=self._writer.schema)
        self._writer.write(batch, counts=done.counts, errors=done.errors, batch_tokens=done.batch_tokens)
        self._rows += len(rows)
        self._tokens += done.counts["tokens"]
        self._padded_tokens += done.padded_tokens

    def _begin(self) -> None:
        """Fix the schema before the first write; the held vectors set the int8 ranges.

        A resumed output already has both.
        """
        plan, writer = self._plan, self._writer
        if writer.schema is None:
            if plan.vector_dtype == "int8":
                none = np.zeros((0, plan.settings.dims), dtype=np.float32)
                self._ranges = ranges_of(np.concatenate([none, *(done.vectors[done.valid] for done in self._held)]))
            writer.begin(plan.schema(self._ranges))
        elif plan.vector_dtype == "int8" and self._ranges is None:
            self._ranges = ranges_from_json(writer.schema.metadata[b"fastvec.ranges"])

    def _check_errors(self, errors: Sequence[RowError]) -> None:
        """Raise RowErrorsError if a chunk, not written yet, exceeds the number of errors that the options allow."""
        plan = self._plan
        total = self._writer.counts["errors"] + len(errors)
        allowed = 0 if plan.on_error == "fail" else plan.max_errors
        if errors and allowed is not None and total > allowed:
            error = errors[max(allowed - self._writer.counts["errors"], 0)]
            file, _ = plan.corpus.locate(error.row)
            option = "--on-error fail" if plan.on_error == "fail" else f"--max-errors {plan.max_errors}"
            remedy = "--on-error null" if plan.on_error == "fail" else "a larger --max-errors"
            raise RowErrorsError(
                f"row {error.row} ({file}) has no vector ({error.code}) and {option} stops there: "
                f"{self._rows:,} rows are safe; run the same command with {remedy} to resume"
            )

    def _interrupted(self) -> InterruptedRunError:
        number = self._stop_signal() or signal.SIGINT
        self._writer.close()
        return InterruptedRunError(
            f"stopped by {signal.Signals(number).name} at row {self._writer.rows:,} of {self._plan.corpus.rows:,}: "
            "run the same command again to resume",
            number,
        )

    def _state(self, pipeline: Pipeline) -> Progress:
        return Progress(
            rows=self._rows,
            total_rows=self._plan.corpus.rows,
            new_rows=self._rows - self._resumed_rows,
            tokens=self._tokens,
            seconds=time.perf_counter() - self._started,
            waits=dict(pipeline.waits),
        )

    def _finished_report(self, pipeline: Pipeline) -> Report:
        state, counts = self._state(pipeline), self._writer.counts
        return _report(
            self._plan,
            rows=state.rows,
            nulls=counts["nulls"],
            empty=counts["empty"],
            truncated=counts["truncated"],
            repaired=counts["repaired"],
            errors=counts["errors"],
            tokens=counts["tokens"],
            resumed_rows=self._resumed_rows,
            seconds=state.seconds,
            rows_per_second=state.rows_per_second,
            tokens_per_second=state.tokens_per_second,
            padding_saved=1 - self._tokens / self._padded_tokens if self._padded_tokens else 0.0,
            waits=state.waits,
            bottleneck=max(pipeline.busy, key=pipeline.busy.__getitem__, default=""),
            peak_memory_bytes=peak_memory_bytes(),
            agreement=None if self._encoder.agreement is None else asdict(self._encoder.agreement),
            torch_ops=self._encoder.torch_ops,
            choices=self._encoder.choices,
        )


def _error_lines(plan: EmbedPlan, errors: Sequence[RowError]) -> Iterator[str]:
    for error in errors:
        file, row_group = plan.corpus.locate(error.row)
        yield json.dumps({"row": error.row, "file": file, "row_group": row_group, "code": error.code})


def _report(plan: EmbedPlan, *, rows: int, **fields: object) -> Report:
    checkpoint = plan.settings.checkpoint
    return Report(
        output=str(plan.output),
        model=checkpoint.name,
        device=plan.settings.device,
        rows=rows,
        note=bundled.NOTE if checkpoint.name == bundled.NAME else "",
        **fields,  # type: ignore[arg-type]
    )
