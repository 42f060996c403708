"""Measures an approximate index against exact search, and finds how hard it has to search.

Shapes: q queries, which are vectors of the index, D dimensions, k neighbours.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastvec.checkpoints.sentence_transformers import Similarity
from fastvec.output.vector_column import FloatArray
from fastvec.retrieval.exact import Positions, best_rows, block_rows
from fastvec.vectors.stored import Block, Vectors

QUERIES = 100
NEIGHBOURS = 10
SEARCHED = NEIGHBOURS + 1  # a query finds itself too
DEPTH = 10 * NEIGHBOURS  # how many rows may be as near as the k-th
RECALL = 0.99
SLACK = 0.001  # of recall: one neighbour of one query
# Of a similarity, relative to the largest: rows that differ by less are equally near. Vectors rounded to float16 have
# an error of 2^-12 in each value, which averages out over the dimensions.
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class PresentVectors:
    """The vectors of outputs, without the rows that have none, as they are compared by `function`: in float32, and at
    length 1 if that is cosine. `count` is how many there are.

    As in exact search, vectors that were normalized when they were embedded are not normalized again.
    """

    vectors: Vectors
    function: Similarity
    count: int

    @classmethod
    def of(cls, vectors: Vectors, function: Similarity) -> "PresentVectors":
        """Count the vectors. Raises OutputError if a file cannot be read."""
        blocks = vectors.blocks(block_rows(vectors, 1))
        count = sum(len(block.present) for block in blocks)
        return cls(vectors=vectors, function=function, count=count)

    def blocks(self) -> Iterator[tuple[Positions, FloatArray]]:
        """Yield all positions [b] and vectors [b, D], a few MB at a time. Raises OutputError."""
        for block in self.vectors.blocks(block_rows(self.vectors, 1)):
            rows = block.present
            if len(rows):
                yield block.begin + rows, self._floats(block, rows)

    def sample(self, size: int) -> tuple[Positions, FloatArray]:
        """Return the positions and vectors of `size` of them, or of all if there are fewer, evenly spaced."""
        wanted = np.arange(min(size, self.count)) * self.count // min(size, self.count)
        found: list[tuple[Positions, FloatArray]] = []
        seen = 0
        for block in self.vectors.blocks(block_rows(self.vectors, 1)):
            rows = block.present
            first, last = np.searchsorted(wanted, [seen, seen + len(rows)])
            if first < last:
                chosen = rows[wanted[first:last] - seen]
                found.append((block.begin + chosen, self._floats(block, chosen)))
            seen += len(rows)
        positions, values = zip(*found, strict=True)
        return np.concatenate(positions), np.concatenate(values)

    def _floats(self, block: Block, rows: npt.NDArray[np.intp]) -> FloatArray:
        unit = self.function == "cosine" and not self.vectors.first.normalize
        values = block.values if len(rows) == len(block) else block.values[rows]
        return self.vectors.floats(Block(block.begin, values, None, block.ranges), unit=unit)


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """Sampled vectors [q, D], their positions [q], and for each the positions of its nearest rows, without itself.

    Several rows can be as near as the tenth; any of them is right.
    """

    queries: FloatArray
    positions: Positions
    nearest: tuple[frozenset[int], ...]

    @classmethod
    def of(cls, present: PresentVectors) -> "Neighbours":
        """Search with a sample of the vectors, exactly. A vector with hundreds of duplicates is left out.

        Needs more than `DEPTH` vectors. Raises OutputError.
        """
        positions, queries = present.sample(QUERIES)
        best = best_rows(present.vectors, queries, DEPTH + 1, function=present.function)
        tolerance = TOLERANCE * float(np.abs(best.scores).max())
        kept: list[int] = []
        nearest: list[frozenset[int]] = []
        for query, own in enumerate(positions):
            others = best.positions[query] != own
            scores = best.scores[query][others]
            near = scores >= scores[NEIGHBOURS - 1] - tolerance
            if not near.all():
                kept.append(query)
                nearest.append(frozenset(best.positions[query][others][near].tolist()))
        return cls(queries=queries[kept], positions=positions[kept], nearest=tuple(nearest))

    def recall(self, found: Positions) -> float:
        """Return which part of the nearest 10 is in `found` [q, 11], the results of the index, best first."""
        right = 0
        for own, nearest, row in zip(self.positions.tolist(), self.nearest, found.tolist(), strict=True):
            right += len(nearest.intersection([position for position in row if position != own][:NEIGHBOURS]))
        return right / (NEIGHBOURS * len(self.nearest)) if self.nearest else 1.0


def least_effort(first: int, last: int, measure: Callable[[int], float]) -> tuple[int, float]:
    """Return the smallest of `first`, twice that, and so on up to `last`, whose recall is 0.99, and its recall.

    If none has it, the smallest with nearly the best recall. `measure` returns the recall with a setting.
    """
    recalls: dict[int, float] = {}
    setting = first
    while setting <= last:
        recalls[setting] = measure(setting)
        if recalls[setting] >= RECALL:
            break
        setting *= 2
    enough = min(RECALL, max(recalls.values()) - SLACK)
    return next((setting, recall) for setting, recall in recalls.items() if recall >= enough)
