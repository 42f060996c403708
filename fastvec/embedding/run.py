"""Runs the stages of an embedding job: read, tokenize, encode, write.

Every stage works on chunks, which are runs of consecutive input rows. A batch never crosses a chunk boundary, and a
chunk becomes one record batch of the output. A resumed run therefore makes the same batches as an uninterrupted one.
"""

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from fastvec.checkpoints import bundled
from fastvec.corpus.reader import ChunkLimits
from fastvec.embedding.encoded_chunks import ChunkEmbedder, EncodedChunk, are_enough, ranges, require_few_errors
from fastvec.embedding.measurements import Measurements
from fastvec.embedding.plan import EmbedPlan
from fastvec.errors import InterruptedRunError
from fastvec.output.earlier import EarlierVectors
from fastvec.output.vector_column import FloatArray, ranges_from_json, to_column
from fastvec.output.writer import RowError, Writer
from fastvec.report import Progress, Report, padded_tokens, peak_memory_bytes
from fastvec.system.pipeline import Pipeline, StoppedError

if TYPE_CHECKING:  # planning a job must not import torch
    from fastvec.encoder import Encoder

logger = logging.getLogger(__name__)


class Run:
    """Runs the stages of one job. The last stage, writing, runs in the caller's thread.

    `ranges` [D] are those of an int8 column; None takes them from the first vectors. `measurements` are added to.
    """

    def __init__(
        self,
        plan: EmbedPlan,
        encoder: "Encoder",
        writer: Writer,
        earlier: EarlierVectors | None,
        progress: Callable[[Progress], None],
        stop_signal: Callable[[], int | None],
        *,
        ranges: FloatArray | None = None,
        measurements: Measurements | None = None,
    ) -> None:
        self._measurements = measurements
        self._plan, self._encoder, self._writer = plan, encoder, writer
        self._embedder = ChunkEmbedder(plan, encoder, earlier)
        self._ranges = ranges if earlier is None else earlier.output.ranges
        self._started, self._progress, self._stop_signal = time.perf_counter(), progress, stop_signal
        self._resumed_rows = self._rows = self._durable_rows
        self._tokens = self._padded_tokens = self._errors = 0
        self._held: list[EncodedChunk] = []  # encoded, not written yet

    def run(self) -> Report:
        writer, plan = self._writer, self._plan
        if self._rows:
            logger.info("resuming %s at row %s of %s", plan.output_name, f"{self._rows:,}", f"{len(plan.rows):,}")
        limits = ChunkLimits(**writer.limits)
        if plan.shard is not None:  # none ends inside; to find where a million end takes seconds
            limits = replace(limits, shard_rows=None)
        chunks = plan.corpus.chunks(
            limits,
            first_row=plan.rows.start + self._rows,
            first_index=writer.chunks,
            end_row=plan.rows.stop,
        )
        try:
            with Pipeline(lambda: self._stop_signal() is not None) as pipeline:
                read = pipeline.run_ahead("read", chunks, feeds="tokenize", depth=2)
                has_instructions = plan.corpus.instruction_column is not None
                tokenized = self._embedder.tokenize.in_order(read, instructions=has_instructions)
                tokenized = pipeline.run_ahead("tokenize", tokenized, feeds="encode", depth=4)
                encoded = self._embedder.encode(tokenized, pipeline.check)
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
        is_held = bool(self._held)
        self._write_held()
        if is_held:  # the progress after the last chunk did not count what was held
            self._progress(self._state(pipeline))
        writer.finish(_error_lines(plan, writer.errors), verify=plan.options.verify)
        if self._measurements is not None:
            self._measurements.add_work(pipeline.busy)
        return self._finished_report(pipeline)

    @property
    def _durable_rows(self) -> int:
        """The durable rows of the corpus; of the output, if its rows are not passages."""
        return self._writer.counts["input_rows"] if self._plan.options.makes_passages else self._writer.rows

    def _can_start_output(self) -> bool:
        """Return whether enough vectors are held to start the output."""
        needs_ranges = self._plan.options.vector_dtype == "int8" and self._ranges is None
        needs_vectors = needs_ranges or self._plan.settings.quantize is not None
        return self._writer.schema is not None or not needs_vectors or are_enough(self._held)

    def _write_held(self) -> None:
        # before the output begins: the ranges of an int8 column must not come from fewer texts than without the errors
        require_few_errors(self._plan, self._writer.counts["errors"], self._held, safe_rows=self._rows)
        self._begin()
        for done in self._held:
            self._write(done)
        self._held.clear()

    def _write(self, done: EncodedChunk) -> None:
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
        self._errors += done.counts["errors"]
        self._padded_tokens += padded_tokens(done.lengths)
        if self._measurements is not None:
            self._measurements.add_chunk(done.lengths, done.vectors[done.valid])

    def _begin(self) -> None:
        """Fix the schema before the first write; the held vectors set the int8 ranges.

        A resumed output already has both.
        """
        plan, writer = self._plan, self._writer
        if writer.schema is None:
            if plan.options.vector_dtype == "int8" and self._ranges is None:
                self._ranges = ranges(self._held, plan.settings.dims)
            writer.begin(plan.schema(self._ranges))
        elif plan.options.vector_dtype == "int8" and self._ranges is None:
            self._ranges = ranges_from_json(writer.schema.metadata[b"fastvec.ranges"])

    def _interrupted(self) -> InterruptedRunError:
        number = self._stop_signal() or signal.SIGINT
        self._writer.close()
        return InterruptedRunError(
            f"stopped by {signal.Signals(number).name} at row {self._durable_rows:,} of {len(self._plan.rows):,}: "
            "run the same command again to resume",
            number,
        )

    def _state(self, pipeline: Pipeline) -> Progress:
        return Progress(
            rows=self._rows,
            total_rows=len(self._plan.rows),
            new_rows=self._rows - self._resumed_rows,
            tokens=self._tokens,
            seconds=time.perf_counter() - self._started,
            waits=dict(pipeline.waits),
            errors=self._errors,
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
            verified=self._writer.verified,
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
