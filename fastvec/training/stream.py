"""Yields training examples from a corpus of any size: shuffled, endless, without held-out rows, resumable.

A corpus is often sorted by topic, date or source. Therefore its rows are divided into stretches, which each epoch reads
in a different order. Several stretches are read alternately, one chunk of each in turn, and the examples are arranged
in blocks of about eight thousand: shuffled, or as the objective asks. Only one block of examples is in memory at a
time. The order depends on the seed, the examples and the batch size alone, and a block can be read again from its
`Place`: a run that resumes at an example rereads one block, not all earlier data.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from fastvec.corpus.reader import Chunk, ChunkLimits, Corpus
from fastvec.errors import InputError

Example = TypeVar("Example")
Arranged = TypeVar("Arranged", contravariant=True)
Rows = tuple[tuple[int, int], ...]  # first row and end row (exclusive) of each of several stretches

LIMITS = ChunkLimits(rows=1024, bytes=1 << 20)
BLOCK_EXAMPLES = 8192
OPEN_STRETCHES = 8  # stretches read alternately; each keeps its file open and its decoded data in memory
# To reach a row inside a row group, the group must be read from its start: a large group is divided into at most this
# many stretches, of at least this many rows.
GROUP_STRETCHES, STRETCH_ROWS = 64, 4096
PLACES_KEPT = 63
FEWEST_HELD_OUT = 8  # rows held out of a small corpus, approximately
_HELD_OUT, _ORDER, _BLOCK = range(3)  # keys of independent random number streams


class Arrange(Protocol[Arranged]):
    def __call__(
        self, examples: Sequence[Arranged], lead: int, size: int, random: np.random.Generator, /
    ) -> npt.NDArray[np.integer]:
        """Return an order of `examples`; the first `lead` of it complete a batch, batches of `size` follow."""


def shuffled(
    examples: Sequence[object], lead: int, size: int, random: np.random.Generator, /
) -> npt.NDArray[np.integer]:
    """Return a random order."""
    return random.permutation(len(examples))


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a block begins. `example` is its first example, counted from the start of the run.

    `begun` is the number of stretches started so far, in the epoch's order. `unread` has the remaining rows of those
    that are not finished, as first and end row, in the order in which they will be read.
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
    """An endless stream of the examples of `corpus`.

    `examples_of` makes the examples of a chunk from the rows that a mask [rows] admits. `hold_out` is the share of rows
    that training never uses. If it is above 0, it is raised in a small corpus to about `FEWEST_HELD_OUT` rows, but to
    at most half of all.
    """

    corpus: Corpus
    examples_of: Callable[[Chunk, npt.NDArray[np.bool_]], list[Example]]
    seed: int
    hold_out: float
    arrange: Arrange[Example] = shuffled
    batch: int = 1  # examples of a batch; the first epoch must have as many
    counts: Counter[str] = field(default_factory=Counter)  # of the rows read so far: rows, nulls, repaired
    _places: list[Place] = field(default_factory=lambda: [Place()])

    def examples(self, start: int = 0, near: Place | None = None) -> Iterator[Example]:
        """Yield the examples from number `start` on; `near` is a place at or before it, by default the beginning.

        Raises InputError if the first epoch has fewer than `batch` examples.
        """
        place = near or Place()
        chunks = self._chunks(place)
        while True:
            self._places = [*self._places[-PLACES_KEPT:], place]  # replaced, not mutated: another thread reads it
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
            if finished and place.epoch == 0 and place.example + len(block) < self.batch:
                count = f"{place.example + len(block)} examples"
                others = " besides those of --hold-out" if self.hold_out > 0 else ""
                raise InputError(
                    f"{self.corpus.files[0].uri}: too little data: it has {count}{others}, and a batch needs "
                    f"{self.batch}: lower --batch-size or give more data"
                )
            random = np.random.default_rng([self.seed, _BLOCK, place.epoch, place.block])
            order = self.arrange(block, -place.example % self.batch, self.batch, random) if block else np.arange(0)
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
        """Return the examples of held-out rows, at most `most`, from stretches in a random order."""
        found: list[Example] = []
        if self.hold_out > 0:
            for chunk, _ in self._chunks(Place(epoch=-1)):
                found += self.examples_of(chunk, self._held_out(chunk))
                if len(found) >= most:
                    break
        return found[:most]

    def place_before(self, example: int) -> Place:
        """Return the last recorded place at or before a recently yielded example."""
        return [place for place in self._places if place.example <= example][-1]

    @cached_property
    def _stretches(self) -> list[tuple[int, int]]:
        """The first row and the end row of each stretch: consecutive rows of one row group."""
        found: list[tuple[int, int]] = []
        for first, end in self.corpus.groups:
            rows = max(STRETCH_ROWS, -(-(end - first) // GROUP_STRETCHES))
            found += [(begin, min(begin + rows, end)) for begin in range(first, end, rows)]
        return found

    def _chunks(self, place: Place) -> Iterator[tuple[Chunk, tuple[int, Rows]]]:
        """Yield the chunks of an epoch from `place` on, each with the `begun` and `unread` of the place after it."""
        order = np.random.default_rng([self.seed, _ORDER, place.epoch + 1]).permutation(len(self._stretches))
        begun = place.begun
        reading = deque(self._read(*rows) for rows in place.unread)
        while True:
            while len(reading) < OPEN_STRETCHES and begun < len(order):
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
        """Return the mask [rows] of a chunk's held-out rows, chosen by a hash of the seed and the row number."""
        share = min(max(self.hold_out, FEWEST_HELD_OUT / self.corpus.rows), 0.5) if self.hold_out > 0 else 0.0
        rows = np.arange(chunk.first_row, chunk.first_row + len(chunk.texts), dtype=np.uint64)
        key = np.uint64(np.random.default_rng([self.seed, _HELD_OUT]).integers(1 << 63))
        return _hashed(rows ^ key) < np.uint64(int(share * (1 << 63)))


def _hashed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a 63-bit hash of each number, by the finalizer of SplitMix64 (Steele, Lea, Flood, 2014)."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(1)
