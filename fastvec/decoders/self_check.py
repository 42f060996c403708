"""Whether a decoder's attention sees what it should: tried on a few tokens each time a model is loaded."""

from typing import Protocol

import numpy as np
import torch

from fastvec.errors import ModelError
from fastvec.texts.packing import Packed, pack

# How far a state that must stay may move, relative to its norm. Dense models repeat to the bit; an expert's
# matrix product rounds by how many tokens it gets (6e-7 in float32), and a half-precision one may pick another kernel.
# What must move may do so by less than that: the bundled model's states by 0.017, of its one layer.
STILL = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-2}


class Checked(Protocol):
    """Of a decoder what is asked here."""

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
        """The states [T, D]."""


def self_check(decoder: Checked) -> None:
    """Run the model, in eval mode, on three short sequences, twice: the second half of the middle one changes between.

    Its first half must move if the decoder is bidirectional, and stay if it is causal; the other two sequences must
    stay. Sequences are at most 8 tokens, shorter than a real model's window. Raises ModelError where it is not so.
    """
    ids = (
        np.arange(24) + decoder.vocabulary // 2
    ) % decoder.vocabulary  # special tokens stand at the ends of a vocabulary
    before, middle, after, other = np.split(ids, [6, 14, 20])
    changed = np.concatenate([middle[:4], other])
    with torch.no_grad():
        states, moved_states = (
            decoder(pack([before, x, after], device=decoder.device)).float() for x in (middle, changed)
        )
    found = f"the states of this {decoder.family} model"
    if not (states.isfinite().all() and moved_states.isfinite().all()):
        raise ModelError(f"{found} are not finite in {decoder.dtype}: its weights are damaged, or need a wider dtype")
    movement = (moved_states - states).norm(dim=-1) / states.norm(dim=-1)
    # a sequence's median, as an expert model may send a token that stands between two experts another way
    outside = max(movement[:6].median().item(), movement[14:].median().item())
    ahead = movement[6:10].median().item()
    still = STILL.get(decoder.dtype, STILL[torch.float32])
    if outside > still:
        raise ModelError(f"{found} depend on other texts of the batch: they moved by {outside:.2g}; please report this")
    if decoder.bidirectional and ahead <= max(STILL[torch.float32], 2 * outside):
        raise ModelError(f"{found} ignore the tokens ahead though it should run bidirectional; please report this")
    if not decoder.bidirectional and ahead > still:
        raise ModelError(f"{found} depend on tokens ahead though it should run causal; please report this")
