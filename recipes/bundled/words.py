"""Dimensions of words, behind those of meaning: each token's own direction, the longer the rarer the token.

What a teacher's vectors taught of words it hardly had is little, and texts of a trade are full of such. So a vector
gets, beside what it means, a random projection of the text's words weighted by rarity, whose inner products are those
of the weighted words to about 1 / sqrt(K) (Johnson and Lindenstrauss, 1984). The layers neither read nor write these
dimensions: they go from the tokens through the mean to the vector.

Shapes: V vocabulary, H the model's width, K of it for words behind it, so that the wider model has H + K.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from recipes.bundled.bags import Texts

POWER = 0.7  # of a word's inverse document frequency
PART = 0.25  # of a token's length, in the rarest words: the norms then change the meaning's scale by 3 % at most
BATCH = 16_384  # texts

Weights = dict[str, torch.Tensor]


def rarity(texts: Path, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Of each token [V], from 0 to 1: log((n + 1) / (texts that hold it + 1)), of which the largest is 1, to POWER."""
    holders, count = torch.zeros(len(tokenizer)), 0
    for bags in batches(texts, tokenizer):
        owners = torch.arange(len(bags.lengths)).repeat_interleave(bags.lengths)
        once = torch.unique(owners * len(tokenizer) + bags.ids.long()) % len(tokenizer)
        holders += torch.bincount(once, minlength=len(tokenizer))
        count += len(bags.lengths)
    frequency = torch.log((count + 1) / (holders + 1))
    return (frequency / frequency.max()) ** POWER


def batches(texts: Path, tokenizer: PreTrainedTokenizerFast) -> Iterator[Texts]:
    for batch in pq.ParquetFile(texts).iter_batches(BATCH, columns=["text"]):
        yield Texts.of(batch["text"].to_pylist(), tokenizer)


def widen(weights: Weights, dense: torch.Tensor, rare: torch.Tensor, width: int) -> tuple[Weights, torch.Tensor]:
    """A Llama's weights and the matrix [H, H] behind its pooling, with `width` dimensions of words behind theirs.

    The matrix passes these on as they are.
    """
    tokens = weights["embed_tokens.weight"]
    before = tokens.shape[1]
    random = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(len(tokens), width, generator=random), dim=1)
    lengths = PART * rare * tokens.norm(dim=1)
    wider = dict(weights)
    wider["embed_tokens.weight"] = torch.cat([tokens, directions * lengths[:, None]], dim=1)
    scale = (before / (before + width)) ** 0.5  # a norm divides by the mean over more dimensions now
    for name, weight in weights.items():
        if name.endswith("layernorm.weight"):
            wider[name] = F.pad(weight * scale, (0, width))
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            wider[name] = F.pad(weight, (0, 0, 0, width))
        elif name.endswith("_proj.weight"):
            wider[name] = F.pad(weight, (0, width))
    wider["norm.weight"] = F.pad(weights["norm.weight"], (0, width), value=1.0) * scale
    return wider, torch.block_diag(dense, torch.eye(width))  # type: ignore[no-untyped-call]


def weigh(dense: torch.Tensor, weights: Weights, texts: Texts, width: int, share: float) -> None:
    """Scale the words' part of `dense` in place, to `share` of the mean squared length of the vectors of `texts`."""
    means = texts.means(weights["embed_tokens.weight"], torch.arange(len(texts.lengths))) * weights["norm.weight"]
    squares = (means @ dense.T).square().sum(dim=0)
    meaning, words = squares[:-width].sum(), squares[-width:].sum()
    dense[-width:] *= (share / (1 - share) * meaning / words).sqrt()
