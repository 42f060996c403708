"""Makes rows of the passages of long texts, and joins the vectors of passages to one of their text.

Shapes: n rows, p passages, D dimensions of a vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.corpus.columns import row_bytes
from fastvec.corpus.reader import Chunk
from fastvec.errors import UsageError
from fastvec.output.reader import PASSAGE_COLUMNS
from fastvec.output.vector_column import FloatArray
from fastvec.texts.passages import Spans

IntArray = npt.NDArray[np.intp]

MOST_KEPT_BYTES = 1 << 30  # of a chunk's kept columns, repeated for each passage


@dataclass(frozen=True, kw_only=True, slots=True)
class Passages:
    """Where each passage [p] of a chunk's rows comes from."""

    rows: IntArray  # relative to the chunk's first row
    numbers: IntArray  # from 0 in each row
    spans: Spans  # [p, 2] begin and end in characters
    of_text: npt.NDArray[np.bool_]  # False for a row without a text, which has one passage without a text

    def columns(self) -> list[pa.Array]:
        """Return the values of PASSAGE_COLUMNS."""
        values = (self.numbers, self.spans[:, 0], self.spans[:, 1])
        masks = (None, ~self.of_text, ~self.of_text)
        return [
            pa.array(value, type, mask=mask)
            for value, mask, (_, type) in zip(values, masks, PASSAGE_COLUMNS, strict=True)
        ]


def rows_of_passages(chunk: Chunk, split: Callable[[Sequence[str], str | None], list[Spans]]) -> tuple[Chunk, Passages]:
    """Return a chunk whose rows are the passages of `chunk`'s rows. `split` takes texts and their instruction.

    Raises UsageError if the kept columns, repeated for each passage, take too much memory.
    """
    texts = chunk.texts.to_pylist()
    instructions = [None] * len(texts) if chunk.instructions is None else chunk.instructions.to_pylist()
    spans: list[Spans] = [np.zeros((1, 2), dtype=np.int64)] * len(texts)
    rows_of: dict[str | None, list[int]] = {}
    for row, instruction in enumerate(instructions):
        if texts[row] is not None:
            rows_of.setdefault(instruction, []).append(row)
    for instruction, own in rows_of.items():
        for row, found in zip(own, split([texts[row] for row in own], instruction), strict=True):
            spans[row] = found
    counts = np.array([len(one) for one in spans])
    rows = np.repeat(np.arange(len(texts)), counts)
    passages = Passages(
        rows=rows,
        numbers=np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts),
        spans=np.concatenate(spans),
        of_text=chunk.texts.is_valid().to_numpy(zero_copy_only=False)[rows],
    )
    _require_small(chunk, counts)
    pieces = [
        None if texts[row] is None else texts[row][begin:end]
        for row, (begin, end) in zip(rows.tolist(), passages.spans.tolist(), strict=True)
    ]
    indices = pa.array(rows)
    return replace(
        chunk,
        texts=pa.array(pieces, pa.large_string()),
        kept=chunk.kept.take(indices),
        instructions=None if chunk.instructions is None else chunk.instructions.take(indices),
        bad=np.flatnonzero(np.isin(rows, chunk.bad)),
    ), passages


def _require_small(chunk: Chunk, counts: IntArray) -> None:
    sizes = sum((row_bytes(column) for column in chunk.kept.columns), start=np.zeros(len(counts), dtype=np.int64))
    if (sizes * counts).sum() > MOST_KEPT_BYTES:
        row = int(np.argmax(sizes * counts))
        raise UsageError(
            f"row {chunk.first_row + row}: its kept columns of {sizes[row]:,} bytes would be repeated for each of its "
            f"{counts[row]:,} passages: keep fewer columns, and join them by `row`"
        )


def joined(vectors: FloatArray, tokens: IntArray, counts: IntArray, *, normalize: bool) -> FloatArray:
    """Return a vector [n, D] for each text: the mean of its passages' `vectors` [p, D], weighted by their `tokens` [p].

    A text has `counts` [n] passages, at least one; the vector of a single one stays as it is.
    """
    if len(vectors) == len(counts):
        return vectors
    begins = np.cumsum(counts) - counts
    weights = (tokens / np.repeat(np.add.reduceat(tokens, begins), counts)).astype(np.float32)
    means = np.add.reduceat(vectors * weights[:, None], begins)
    if normalize:
        norms = np.linalg.norm(means, axis=1, keepdims=True)
        means /= np.where(norms > 0, norms, 1)
    single = counts == 1
    means[single] = vectors[begins[single]]
    return means
