"""Examples for training out of a corpus of any size: shuffled, without end, held-out rows left out, resumable.

A corpus is often sorted, by topic, date or source. So stretches of its rows come in an order of their own in every
epoch, several are read side by side, a chunk of each in turn, and examples are shuffled in blocks of a few thousand, so
that only a block is ever in memory. What comes follows from the seed alone, and a block can be begun anew from its
`Place`: a run that resumes at an example reads one block again, not the whole past.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from fastvec.corpus.reader import Chunk, ChunkLimits, Corpus
from fastvec.errors import InputError

Example = TypeVar("Example")
Rows = tuple[tuple[int, int], ...]  # first and end of some stretches

LIMITS = ChunkLimits(rows=1024, bytes=1 << 20)
BLOCK_EXAMPLES = 8192
SIDE_BY_SIDE = 8  # stretches; each holds its file open, and what was decoded of it
STRETCH_ROWS = 4096  # at least; a row group is read from its beginning to get at the rows in its middle,
GROUP_STRETCHES = 64  # so that a large one is cut into no more than these
PLACES_KEPT = 63
FEWEST_HELD_OUT = 8  # rows of a small corpus
_HELD_OUT, _ORDER, _BLOCK = range(3)  # streams of random numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a block begins: `example` counts from the start of the run, `begun` the stretches in the epoch's order.

    `unread` are the rows of those that are left, first and end, the next to be read in front.
    """

    example: int = 0
    epoch: int = 0
    block: int = 0
    begun: int = 0
    unread: Rows = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        return cls(**fields | {"unread": tuple((first, end) for first, end in fields["unread"])})


@dataclass
class ExampleStream(Generic[Example]):
    """The examples of `corpus`, for ever, from the one numbered `start` on.

    `examples_of` makes those of a chunk, of which only the rows that a mask [rows] admits are used.
    `hold_out` is the share of rows that training never sees; a small corpus gives at least a few.
    """

    corpus: Corpus
    examples_of: Callable[[Chunk, npt.NDArray[np.bool_]], list[Example]]
    seed: int
    hold_out: float
    fewest: int = 1  # that an epoch must give
    counts: Counter[str] = field(default_factory=Counter)  # of the rows read so far: rows, nulls, repaired
    _places: list[Place] = field(default_factory=lambda: [Place()])

    def examples(self, start: int = 0, near: Place | None = None) -> Iterator[Example]:
        """From example `start` on; `near` is a place at or before it, omitted the beginning.

        Raises InputError where a whole epoch has fewer than `fewest`.
        """
        place = near or Place()
        chunks = self._chunks(place)
        while True:
            self._places = [*self._places[-PLACES_KEPT:], place]  # never changed in place: another thread looks at it
            block: list[Example] = []
            after = place.begun, place.unread
            for chunk, following in chunks:
                after = following
                self.counts.update(rows=len(chunk.texts), nulls=chunk.texts.null_count, repaired=chunk.repaired)
                block += self.examples_of(chunk, ~self._held_out(chunk))
                if len(block) >= BLOCK_EXAMPLES:
                    break
            begun, unread = after
            finished = not unread and begun == len(self._stretches)
            if finished and place.epoch == 0 and place.example + len(block) < self.fewest:
                raise InputError(
                    f"{self.corpus.files[0].uri}: too little data: it gives {place.example + len(block)} examples and "
                    f"a batch takes {self.fewest}: lower --batch-size or give more"
                )
            order = np.random.default_rng([self.seed, _BLOCK, place.epoch, place.block]).permutation(len(block))
            for index in order[max(start - place.example, 0) :]:
                yield block[index]
            place = Place(
                example=place.example + len(block),
                epoch=place.epoch + finished,
                block=0 if finished else place.block + 1,
                begun=0 if finished else begun,
                unread=unread,
            )
            if finished:
                chunks = self._chunks(place)

    def held_out(self, most: int) -> list[Example]:
        """The examples of held-out rows: all, or `most` of them, out of stretches from everywhere."""
        found: list[Example] = []
        if self.hold_out > 0:
            for chunk, _ in self._chunks(Place(epoch=-1)):
                found += self.examples_of(chunk, self._held_out(chunk))
                if len(found) >= most:
                    break
        return found[:most]

    def place_before(self, example: int) -> Place:
        """The last place noted at or before an example that came lately."""
        return [place for place in self._places if place.example <= example][-1]

    @cached_property
    def _stretches(self) -> list[tuple[int, int]]:
        """The first row and the end of each: neighbouring rows of one row group, which are read in turn."""
        found: list[tuple[int, int]] = []
        for first, end in self.corpus.groups:
            rows = max(STRETCH_ROWS, -(-(end - first) // GROUP_STRETCHES))
            found += [(begin, min(begin + rows, end)) for begin in range(first, end, rows)]
        return found

    def _chunks(self, place: Place) -> Iterator[tuple[Chunk, tuple[int, Rows]]]:
        """The chunks of an epoch from `place` on, each with the `begun` and `unread` of what comes after it."""
        order = np.random.default_rng([self.seed, _ORDER, place.epoch + 1]).permutation(len(self._stretches))
        begun = place.begun
        reading = deque(self._read(*rows) for rows in place.unread)
        while True:
            while len(reading) < SIDE_BY_SIDE and begun < len(order):
                reading.append(self._read(*self._stretches[order[begun]]))
                begun += 1
            if not reading:
                return
            chunks, _, end = reading.popleft()
            chunk = next(chunks)
            row = chunk.first_row + len(chunk.texts)
            if row < end:
                reading.append((chunks, row, end))
            yield chunk, (begun, tuple((first, end) for _, first, end in reading))

    def _read(self, first: int, end: int) -> tuple[Iterator[Chunk], int, int]:
        return self.corpus.chunks(LIMITS, first_row=first, end_row=end), first, end

    def _held_out(self, chunk: Chunk) -> npt.NDArray[np.bool_]:
        """Which rows of a chunk [rows] are set apart, by a hash of the seed and the row's number."""
        share = min(max(self.hold_out, FEWEST_HELD_OUT / self.corpus.rows), 0.5) if self.hold_out > 0 else 0.0
        rows = np.arange(chunk.first_row, chunk.first_row + len(chunk.texts), dtype=np.uint64)
        key = np.uint64(np.random.default_rng([self.seed, _HELD_OUT]).integers(1 << 63))
        return _hashed(rows ^ key) < np.uint64(int(share * (1 << 63)))


def _hashed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """63 bits of each number, by the finaliser of SplitMix64 (Steele, Lea, Flood, 2014)."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(1)
