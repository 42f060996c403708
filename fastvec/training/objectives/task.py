"""What a step of training does: texts to examples, examples to a loss, and its gradient to the model.

A task is the part of an objective that knows about text, batches and ranks; the formulas are in `losses.py`.
The model comes as a `Pass`: it runs packed sequences forward, with this step's noise, and takes gradients back.

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch(Generic[Example]):
    """The examples of one step over all ranks, and which of them are this rank's."""

    step: int
    examples: Sequence[Example]
    rank: int
    ranks: int

    @property
    def own(self) -> range:
        """The places of this rank's examples in the whole batch; they are also the numbers its noise is keyed by."""
        share = len(self.examples) // self.ranks
        return range(self.rank * share, (self.rank + 1) * share)


class Pass(Protocol):
    """The model in one step."""

    @property
    def seed(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def forward(self, packed: Packed, numbers: Sequence[int]) -> torch.Tensor:
        """The states [T, hidden_size]; `numbers` are what the sequences are known by to the noise."""

    def autocast(self) -> AbstractContextManager[None]:
        """For what is computed of the states: in the precision of the forward."""

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        """For the forward and backward of a part of a batch: gradients are summed over the ranks in the `last`.

        Around both, as DistributedDataParallel settles in a forward whether its backward sums: ranks may have unequal
        numbers of parts, and would wait for each other.
        """


def split_by_length(lengths: Sequence[int], at_once: int | None) -> list[list[int]]:
    """Places of sequences in groups of at most `at_once`, longest first, so that equal lengths are neighbours."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    groups = 1 if at_once is None else -(-len(order) // at_once)
    return [list(map(int, part)) for part in np.array_split(order, groups)]
