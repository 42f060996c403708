"""Check, each time a model is loaded, that its attention sees the tokens it should, on three short sequences."""

from typing import Protocol

import numpy as np
import torch

from fastvec.errors import ModelError, one_line
from fastvec.texts.packing import Packed, pack

# The largest change, relative to its norm, of a hidden state that must not change. Dense models are reproducible bit
# for bit; an expert's matrix product rounds differently with the number of its tokens (6e-7 in float32), and in half
# precision may use another kernel. Changes that are expected can be smaller than this: in a
# model of one layer they were 0.017.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-2}


class Checked(Protocol):
    """The part of a decoder that the check uses."""

    bidirectional: bool

    @property
    def family(self) -> str: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def __call__(self, packed: Packed) -> torch.Tensor:
        """Return the hidden states [T, D]."""


def self_check(decoder: Checked) -> None:
    """Run the model, in eval mode, twice on three short sequences; the second half of the middle one differs.

    The states of its first half must change if the decoder is bidirectional and stay the same if it is causal. Those of
    the other two sequences must stay the same. Sequences have at most 8 tokens, fewer than a real model's window.
    Raises ModelError otherwise, if a state is not finite, or if the model computes with values that fit no model.
    """
    ids = (
        np.arange(24) + decoder.vocabulary // 2
    ) % decoder.vocabulary  # special tokens are at the ends of a vocabulary
    before, middle, after, other = np.split(ids, [6, 14, 20])
    changed = np.concatenate([middle[:4], other])
    try:
        with torch.no_grad():
            states, moved_states = (
                decoder(pack([before, x, after], device=decoder.device)).float() for x in (middle, changed)
            )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(f"this {decoder.family} model cannot run with its config.json: {one_line(error)}") from error
    found = f"the states of this {decoder.family} model"
    if not (states.isfinite().all() and moved_states.isfinite().all()):
        raise ModelError(f"{found} are not finite in {decoder.dtype}: its weights are damaged, or need float32")
    movement = (moved_states - states).norm(dim=-1) / states.norm(dim=-1)
    # the median over a sequence: a router may send a token with nearly equal scores to a different expert
    outside = max(movement[:6].median().item(), movement[14:].median().item())
    ahead = movement[6:10].median().item()
    tolerance = TOLERANCE.get(decoder.dtype, TOLERANCE[torch.float32])
    if outside > tolerance:
        raise ModelError(f"{found} depend on other texts of the batch: change {outside:.2g}; please report this")
    if decoder.bidirectional and ahead <= max(TOLERANCE[torch.float32], 2 * outside):
        raise ModelError(f"{found} ignore later tokens although it should run bidirectional; please report this")
    if not decoder.bidirectional and ahead > tolerance:
        raise ModelError(f"{found} depend on later tokens although it should run causal; please report this")
