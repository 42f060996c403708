"""Evaluates an encoder during training: Spearman's correlation on human-scored pairs, and held-out measures."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from fastvec.decoders.packed_transformers import Noise, forward_packed
from fastvec.texts.packing import Packed
from fastvec.texts.tokenizer import TextTokenizer
from fastvec.training.objectives.noise import NoiseSource
from fastvec.training.objectives.readout import Readout, tokenized
from fastvec.training.scored_pairs import ScoredPairs, spearman

TEXTS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPass:
    """A `task.Pass` for evaluation: runs forwards without gradients, and without noise unless `noise` is given."""

    model: nn.Module
    device: torch.device
    seed: int = 0
    noise: NoiseSource | None = None
    attention_dropout: float = 0.0
    narrow: bool = False  # autocast to bfloat16, over float32 weights

    def forward(self, packed: Packed, numbers: Sequence[int]) -> torch.Tensor:
        with self.autocast():
            if self.noise is None:
                return forward_packed(self.model, packed)
            noise = Noise(seed=self.seed, numbers=numbers, attention_dropout=self.attention_dropout)
            self.noise.set(noise, packed.lengths, self.device)
            try:
                return forward_packed(self.model, packed, noise)
            finally:
                self.noise.set(None, (), self.device)

    def autocast(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = torch.autocast(self.device.type, torch.bfloat16, enabled=self.narrow)
        return context

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        raise NotImplementedError("an evaluation pass takes no gradients")


def similarity(pairs: ScoredPairs, tokenizer: TextTokenizer, readout: Readout, look: EvaluationPass) -> float:
    """Return Spearman's correlation between the cosine similarities of the pairs and their human scores."""
    texts = tokenized(tokenizer, [*pairs.first, *pairs.second])
    with torch.no_grad():
        vectors = readout.encode_in_parts(texts, range(len(texts)), look, at_once=TEXTS_AT_ONCE)
    first, second = torch.split(F.normalize(vectors, dim=-1), len(pairs.first))
    return spearman((first * second).sum(dim=-1).cpu().numpy(), pairs.scores)
