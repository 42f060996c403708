"""Runs the stages of an embedding job: read, tokenize, encode, write.

Every stage works on chunks, which are runs of consecutive input rows. A batch never crosses a chunk boundary, and a
chunk becomes one record batch of the output. A resumed run therefore makes the same batches as an uninterrupted one.
"""

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.checkpoints import bundled
from fastvec.corpus.reader import Chunk, ChunkLimits
from fastvec.embedding.passages import Passages, joined
from fastvec.embedding.plan import EmbedPlan
from fastvec.embedding.tokenized_chunks import ChunkTokenizer, TokenizedChunk
from fastvec.errors import InterruptedRunError, RowErrorsError
from fastvec.output.earlier import EarlierVectors
from fastvec.output.vector_column import FloatArray, ranges_from_json, ranges_of, to_column
from fastvec.output.writer import RowError, Writer
from fastvec.report import Progress, Report, padded_tokens, peak_memory_bytes
from fastvec.system.pipeline import Pipeline, StoppedError, delayed

if TYPE_CHECKING:  # planning a job must not import torch
    from fastvec.encoder import Encoder, SubmittedChunk
    from fastvec.texts.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

FLOAT16_MAX = 65504.0
# The first vectors set the ranges of an int8 column and decide whether a quantized model is accurate enough. In such
# jobs nothing is written before this many texts have a vector, or this many rows were encoded, or the input ends.
FIRST_TEXTS, FIRST_ROWS = 256, 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class _EncodedChunk:
    chunk: Chunk
    vectors: FloatArray  # [n, D], for each of the chunk's texts
    valid: npt.NDArray[np.bool_]  # [n], whether a text has a vector
    hashes: pa.Array | None  # [n], if asked for
    origin: Passages | None  # [n], if the rows are passages
    counts: Mapping[str, int]
    errors: Sequence[RowError]
    batch_tokens: int
    padded_tokens: int


class Run:
    """Runs the stages of one job. The last stage, writing, runs in the caller's thread."""

    def __init__(
        self,
        plan: EmbedPlan,
        encoder: "Encoder",
        writer: Writer,
        earlier: EarlierVectors | None,
        progress: Callable[[Progress], None],
        stop_signal: Callable[[], int | None],
    ) -> None:
        self._plan, self._encoder, self._writer, self._earlier = plan, encoder, writer, earlier
        self._started, self._progress, self._stop_signal = time.perf_counter(), progress, stop_signal
        self._resumed_rows = self._rows = self._durable_rows
        self._tokens = self._padded_tokens = 0
        self._ranges: FloatArray | None = None
        self._held: list[_EncodedChunk] = []  # encoded, not written yet

    def run(self) -> Report:
        writer, plan = self._writer, self._plan
        if self._rows:
            logger.info("resuming %s at row %s of %s", plan.output_name, f"{self._rows:,}", f"{plan.corpus.rows:,}")
        chunks = plan.corpus.chunks(ChunkLimits(**writer.limits), first_row=self._rows, first_index=writer.chunks)
        try:
            with Pipeline(lambda: self._stop_signal() is not None) as pipeline:
                read = pipeline.run_ahead("read", chunks, feeds="tokenize", depth=2)
                tokenizer = ChunkTokenizer(self._tokenizer, options=plan.options, earlier=self._earlier)
                tokenized = tokenizer.in_order(read, instructions=plan.corpus.instruction_column is not None)
                tokenized = pipeline.run_ahead("tokenize", tokenized, feeds="encode", depth=4)
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

    @property
    def _durable_rows(self) -> int:
        """The durable rows of the corpus; of the output, if its rows are not passages."""
        return self._writer.counts["input_rows"] if self._plan.options.makes_passages else self._writer.rows

    def _encode(self, chunks: Iterator[TokenizedChunk], pipeline: Pipeline) -> Iterator[_EncodedChunk]:
        begun = ((chunk, self._encoder.begin(chunk.texts, pipeline.check)) for chunk in chunks)
        for chunk, vectors in delayed(begun, by=self._encoder.chunks_ahead):
            yield self._embedded(chunk, vectors)

    def _tokenizer(self, instruction: str | None) -> "TextTokenizer":
        """Return the tokenizer for a row's own instruction, or for that of the job."""
        return self._encoder.tokenizer(instruction or self._plan.options.instruction, self._plan.options.prompt_name)

    def _embedded(self, chunk: TokenizedChunk, begun: "SubmittedChunk") -> _EncodedChunk:
        encoded = self._encoder.finish(begun)
        text_of = np.repeat(np.arange(len(chunk.passages)), chunk.passages)
        distinct = {int(text_of[index]): code for index, code in encoded.failed.items()}
        vectors = joined(
            encoded.vectors,
            np.diff(chunk.texts.spans)[:, 0],
            chunk.passages,
            normalize=self._plan.settings.normalize,
        )
        if self._plan.options.vector_dtype == "float16":
            too_large = (np.abs(vectors) > FLOAT16_MAX).any(axis=1)
            distinct |= {int(index): "float16_overflow" for index in np.flatnonzero(too_large)}
        failed = dict(chunk.failed)
        for index, code in distinct.items():
            failed |= dict.fromkeys(np.flatnonzero(chunk.places == index).tolist(), code)
        valid = chunk.places >= 0
        if len(chunk.reused):
            vectors = np.concatenate([vectors, chunk.reused])
        if not np.array_equal(chunk.places, np.arange(len(vectors))):
            distinct_vectors, vectors = vectors, np.zeros((len(valid), self._encoder.dims), dtype=np.float32)
            vectors[valid] = distinct_vectors[chunk.places[valid]]
        valid[list(failed)] = False
        return _EncodedChunk(
            chunk=chunk.chunk,
            vectors=vectors,
            valid=valid,
            hashes=chunk.hashes,
            counts={**chunk.counts, "errors": len(failed)},
            errors=self._row_errors(chunk, failed),
            origin=chunk.origin,
            batch_tokens=begun.batch_tokens,
            padded_tokens=padded_tokens(chunk.texts.lengths),
        )

    def _row_errors(self, tokenized: TokenizedChunk, failed: Mapping[int, str]) -> list[RowError]:
        """Return the errors of the texts `failed`, by row and then by column."""
        columns, chunk = self._plan.corpus.columns, tokenized.chunk
        errors = []
        for place, code in failed.items():
            column, row = divmod(place, chunk.kept.num_rows)
            row = row if tokenized.origin is None else int(tokenized.origin.rows[row])
            name = columns[column] if len(columns) > 1 else ""
            errors.append((row, column, RowError(row=chunk.first_row + row, code=code, column=name)))
        return [error for *_, error in sorted(errors, key=lambda found: found[:2])]

    def _can_start_output(self) -> bool:
        """Return whether enough vectors are held to start the output."""
        plan = self._plan
        needs_ranges = plan.options.vector_dtype == "int8" and self._earlier is None
        if self._writer.schema is not None or not (needs_ranges or plan.settings.quantize):
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
        rows = np.arange(chunk.kept.num_rows) if done.origin is None else done.origin.rows
        columns = [] if done.origin is None else done.origin.columns()
        if plan.options.chunk_text:
            columns.append(chunk.texts.cast(pa.string()))
        columns += [
            to_column(vectors, valid, plan.options.vector_dtype, self._ranges)
            for vectors, valid in zip(
                np.split(done.vectors, len(plan.vector_columns)),
                np.split(done.valid, len(plan.vector_columns)),
                strict=True,
            )
        ]
        if done.hashes is not None:
            columns += [done.hashes.slice(begin, len(rows)) for begin in range(0, len(done.hashes), len(rows))]
        numbers = pa.array(chunk.first_row + rows, pa.int64())
        batch = pa.RecordBatch.from_arrays([*chunk.kept.columns, numbers, *columns], schema=self._writer.schema)
        self._writer.write(batch, counts=done.counts, errors=done.errors, batch_tokens=done.batch_tokens)
        self._rows += done.counts.get("input_rows", len(rows))
        self._tokens += done.counts["tokens"]
        self._padded_tokens += done.padded_tokens

    def _begin(self) -> None:
        """Fix the schema before the first write; the held vectors set the int8 ranges.

        A resumed output already has both.
        """
        plan, writer = self._plan, self._writer
        if writer.schema is None:
            if self._earlier is not None:
                self._ranges = self._earlier.output.ranges
            elif plan.options.vector_dtype == "int8":
                none = np.zeros((0, plan.settings.dims), dtype=np.float32)
                self._ranges = ranges_of(np.concatenate([none, *(done.vectors[done.valid] for done in self._held)]))
            writer.begin(plan.schema(self._ranges))
        elif plan.options.vector_dtype == "int8" and self._ranges is None:
            self._ranges = ranges_from_json(writer.schema.metadata[b"fastvec.ranges"])

    def _check_errors(self, errors: Sequence[RowError]) -> None:
        """Raise RowErrorsError if a chunk, not written yet, exceeds the number of errors that the options allow."""
        plan = self._plan
        total = self._writer.counts["errors"] + len(errors)
        allowed = 0 if plan.options.on_error == "fail" else plan.options.max_errors
        if errors and allowed is not None and total > allowed:
            error = errors[max(allowed - self._writer.counts["errors"], 0)]
            file, place = next(plan.corpus.locate([error.row]))
            option = "--on-error fail" if plan.options.on_error == "fail" else f"--max-errors {plan.options.max_errors}"
            remedy = "--on-error null" if plan.options.on_error == "fail" else "a larger --max-errors"
            raise RowErrorsError(
                f"row {error.row} ({file}, {_described(place)}) has no vector ({error.code}) and {option} stops there: "
                f"{self._rows:,} rows are safe; run the same command with {remedy} to resume"
            )

    def _interrupted(self) -> InterruptedRunError:
        number = self._stop_signal() or signal.SIGINT
        self._writer.close()
        return InterruptedRunError(
            f"stopped by {signal.Signals(number).name} at row {self._durable_rows:,} of {self._plan.corpus.rows:,}: "
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
        return report_of(
            self._plan,
            rows=self._writer.rows,
            input_rows=counts["input_rows"],
            nulls=counts["nulls"],
            empty=counts["empty"],
            truncated=counts["truncated"],
            repaired=counts["repaired"],
            duplicates=counts["duplicates"],
            reused=counts["reused"],
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
    places = plan.corpus.locate([error.row for error in errors])
    for error, (file, place) in zip(errors, places, strict=True):
        column = {"column": error.column} if error.column else {}
        yield json.dumps({"row": error.row, "file": file, **place, "code": error.code, **column})


def _described(place: Mapping[str, int]) -> str:
    return ", ".join(f"{unit.replace('_', ' ')} {number:,}" for unit, number in place.items())


def report_of(plan: EmbedPlan, *, rows: int, **fields: object) -> Report:
    checkpoint = plan.settings.checkpoint
    return Report(
        output=plan.output_name,
        model=checkpoint.name,
        device=plan.settings.device,
        rows=rows,
        note=bundled.NOTE if checkpoint.name == bundled.NAME else "",
        **fields,  # type: ignore[arg-type]
    )
