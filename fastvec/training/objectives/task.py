"""The interface between a training task and the model in one step.

A task makes examples from texts, computes their loss and backpropagates it. The task handles texts, batches and ranks;
the formulas are in `losses`. A task gets the model as a `Pass`, which runs the forward over packed sequences with this
step's noise and controls when gradients are averaged over ranks.

Shapes: T packed tokens, n texts, D dimensions.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from fastvec.texts.packing import Packed

Example = TypeVar("Example")
EVALUATED_AT_ONCE = 32  # texts in one forward of an evaluation, at most: a batch of all ranks has more


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch(Generic[Example]):
    """The examples of one step over all ranks, and which of them are this rank's."""

    step: int
    examples: Sequence[Example]
    rank: int
    ranks: int

    @property
    def own(self) -> range:
        """The indices of this rank's examples in the whole batch, which also identify them to the noise."""
        share = len(self.examples) // self.ranks
        return range(self.rank * share, (self.rank + 1) * share)


class Pass(Protocol):
    """The model in one step."""

    @property
    def seed(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def forward(self, packed: Packed, numbers: Sequence[int]) -> torch.Tensor:
        """Return the hidden states [T, hidden_size]; `numbers` identify the sequences to the noise."""

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context for computing on the hidden states in the precision of the forward."""

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        """Return the context for a part's forward and backward; only the `last` part averages gradients over ranks.

        All ranks take the same number of parts, because those of a model that is split over ranks run together. The
        context must enclose forward and backward: DistributedDataParallel decides in the forward whether its backward
        averages.
        """


def split_by_length(lengths: Sequence[int], at_once: int | None, most: int | None = None) -> list[list[int]]:
    """Return groups of at most `at_once` sequence indices, longest sequences first; each has similar lengths.

    There are as many groups as `most` sequences would have, by default just enough; some may be empty.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    groups = 1 if at_once is None else -(-(most or len(order)) // at_once)
    return [list(map(int, part)) for part in np.array_split(order, groups)]


def evaluated_at_once(at_once: int | None, size: int) -> int:
    """Return how many texts an evaluation in batches of `size` takes in one forward: `at_once`, if that is given."""
    return at_once or min(size, EVALUATED_AT_ONCE)
