"""Encodes tokenized chunks: their texts' vectors, errors and counts.

Shapes: n texts of a chunk, D dimensions of a vector.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.corpus.reader import Chunk, ChunkLimits
from fastvec.embedding.passages import Passages, joined
from fastvec.embedding.plan import EmbedPlan
from fastvec.embedding.tokenized_chunks import ChunkTokenizer, TokenizedChunk
from fastvec.errors import RowErrorsError
from fastvec.output.earlier import EarlierVectors
from fastvec.output.vector_column import FloatArray, ranges_of
from fastvec.output.writer import RowError
from fastvec.system.pipeline import delayed

if TYPE_CHECKING:  # planning a job must not import torch
    from fastvec.encoder import Encoder, SubmittedChunk
    from fastvec.texts.tokenizer import TextTokenizer

FLOAT16_MAX = 65504.0
# The first vectors set the ranges of an int8 column and decide whether a quantized model is accurate enough. In such
# jobs nothing is written before this many texts have a vector, or this many rows were encoded, or the input ends.
FIRST_TEXTS, FIRST_ROWS = 256, 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedChunk:
    """A chunk with the vectors of its texts."""

    chunk: Chunk
    vectors: FloatArray  # [n, D], for each of the chunk's texts
    valid: npt.NDArray[np.bool_]  # [n], whether a text has a vector
    hashes: pa.Array | None  # [n], if asked for
    origin: Passages | None  # [n], if the rows are passages
    counts: Mapping[str, int]
    errors: Sequence[RowError]
    batch_tokens: int
    lengths: npt.NDArray[np.integer]  # [s], the tokens of each sequence that was encoded, in input order


class ChunkEmbedder:
    """Encodes the chunks of one job."""

    def __init__(self, plan: EmbedPlan, encoder: "Encoder", earlier: EarlierVectors | None) -> None:
        self._plan, self._encoder = plan, encoder
        self.tokenize = ChunkTokenizer(self._tokenizer, options=plan.options, earlier=earlier)

    def encode(self, chunks: Iterator[TokenizedChunk], check: Callable[[], None]) -> Iterator[EncodedChunk]:
        """Yield the chunks with their vectors, in order; `check` is called between batches, and may raise."""
        begun = ((chunk, self._encoder.begin(chunk.texts, check)) for chunk in chunks)
        for chunk, vectors in delayed(begun, by=self._encoder.chunks_ahead):
            yield self._embedded(chunk, vectors)

    def first_ranges(self, limits: ChunkLimits) -> FloatArray:
        """Return the ranges [D] of the int8 column that this job writes, from the first rows of the corpus.

        Raises RowErrorsError if more of them have no vector than the options allow.
        """
        held: list[EncodedChunk] = []
        tokenized = map(self.tokenize, self._plan.corpus.chunks(limits))
        for done in self.encode(tokenized, lambda: None):
            held.append(done)
            if are_enough(held):
                break
        require_few_errors(self._plan, 0, held, safe_rows=0)
        return ranges(held, self._plan.settings.dims)

    def _tokenizer(self, instruction: str | None) -> "TextTokenizer":
        """Return the tokenizer for a row's own instruction, or for that of the job."""
        return self._encoder.tokenizer(instruction or self._plan.options.instruction, self._plan.options.prompt_name)

    def _embedded(self, chunk: TokenizedChunk, begun: "SubmittedChunk") -> EncodedChunk:
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
        return EncodedChunk(
            chunk=chunk.chunk,
            vectors=vectors,
            valid=valid,
            hashes=chunk.hashes,
            counts={**chunk.counts, "errors": len(failed)},
            errors=self._row_errors(chunk, failed),
            origin=chunk.origin,
            batch_tokens=begun.batch_tokens,
            lengths=chunk.texts.lengths,
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


def are_enough(held: Sequence[EncodedChunk]) -> bool:
    """Return whether the first chunks have enough vectors to start an output that depends on them."""
    valid = np.concatenate([done.valid for done in held])
    return bool(valid.sum() >= FIRST_TEXTS or len(valid) >= FIRST_ROWS)


def ranges(held: Sequence[EncodedChunk], dims: int) -> FloatArray:
    """Return the ranges [D] of an int8 column that begins with these chunks."""
    none = np.zeros((0, dims), dtype=np.float32)
    return ranges_of(np.concatenate([none, *(done.vectors[done.valid] for done in held)]))


def require_few_errors(plan: EmbedPlan, counted: int, chunks: Sequence[EncodedChunk], *, safe_rows: int) -> None:
    """Raise RowErrorsError if `chunks`, after `counted` errors, exceed the number of errors that the options allow."""
    allowed = 0 if plan.options.on_error == "fail" else plan.options.max_errors
    errors = [error for chunk in chunks for error in chunk.errors]
    if not errors or allowed is None or counted + len(errors) <= allowed:
        return
    error = errors[max(allowed - counted, 0)]
    file, place = next(plan.corpus.locate([error.row]))
    option = "--on-error fail" if plan.options.on_error == "fail" else f"--max-errors {plan.options.max_errors}"
    remedy = "--on-error null" if plan.options.on_error == "fail" else "a larger --max-errors"
    raise RowErrorsError(
        f"row {error.row} ({file}, {_described(place)}) has no vector ({error.code}) and {option} stops there: "
        f"{safe_rows:,} rows are safe; run the same command with {remedy} to resume"
    )


def _described(place: Mapping[str, int]) -> str:
    return ", ".join(f"{unit.replace('_', ' ')} {number:,}" for unit, number in place.items())
