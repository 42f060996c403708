"""How good an encoder is while it learns: Spearman's correlation on pairs that people scored, and held-out measures.

Shapes: n pairs.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fastvec.decoder import Noise, forward_packed
from fastvec.packed import Packed, pack
from fastvec.sentence_folder import Pooling
from fastvec.tokenize import TextTokenizer
from fastvec.training.contrast import Text, tokenized
from fastvec.training.noise import NoiseSource
from fastvec.training.pairs import ScoredPairs, spearman
from fastvec.training.tasks import split_by_length
from fastvec_kernels import pool

TEXTS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """`tasks.Pass` outside of training: a forward without a graph, with noise only where `noise` is given."""

    model: nn.Module
    device: torch.device
    seed: int = 0
    noise: NoiseSource | None = None
    attention_dropout: float = 0.0
    narrow: bool = False  # bfloat16 over float32 weights

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

    def backward(self, value: torch.Tensor, gradient: torch.Tensor | None = None, *, last: bool) -> None:
        raise NotImplementedError("a look takes no gradient")


def similarity(pairs: ScoredPairs, tokenizer: TextTokenizer, pooling: Pooling, look: Look) -> float:
    """Spearman's correlation of the vectors' cosines and people's scores."""
    texts = tokenized(tokenizer, [*pairs.first, *pairs.second])
    vectors = F.normalize(encode_texts(texts, pooling, look), dim=-1)
    first, second = torch.split(vectors, len(pairs.first))
    return spearman((first * second).sum(dim=-1).cpu().numpy(), pairs.scores)


def encode_texts(texts: Sequence[Text], pooling: Pooling, look: Look) -> torch.Tensor:
    """The pooled vectors [n, D] of `texts`, in order."""
    parts = split_by_length([len(text.ids) for text in texts], TEXTS_AT_ONCE)
    vectors = []
    with torch.no_grad():
        for part in parts:
            spans = np.array([texts[i].span for i in part])
            packed = pack([texts[i].ids for i in part], spans, device=look.device)
            vectors.append(pool(look.forward(packed, part), packed.spans, pooling, normalize=False))
    return torch.cat(vectors)[torch.from_numpy(np.argsort(np.concatenate(parts))).to(look.device)]
