"""Append word dimensions to the meaning dimensions: a random direction for each token, longer for rarer tokens.

The teacher's vectors teach little about words that are rare in the training texts, and specialist texts are full of
them. So a vector has, besides the meaning, a random projection of the text's words weighted by rarity. Its inner
products equal those of the weighted words to within about 1 / sqrt(K) (Johnson and Lindenstrauss, 1984). The layers
neither read nor write these dimensions: they pass from the tokens through the mean to the vector.

Shapes: V vocabulary, H the model's width, K word dimensions appended to it; the wider model has H + K.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from recipes.bundled.bags import Texts

POWER = 0.7  # exponent of the inverse document frequency
PART = 0.25  # of a token's norm, for the rarest token: the RMSNorms then change the meaning's scale by at most 3 %
BATCH = 16_384  # texts

Weights = dict[str, torch.Tensor]


def rarity(texts: Path, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Return the rarity of each token [V], from 0 to 1.

    It is log((n + 1) / (texts with the token + 1)), divided by its largest value, to the power POWER.
    """
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
    """Append `width` word dimensions to a Llama's weights and to `dense` [H, H], the matrix after its pooling.

    The matrix passes the word dimensions through unchanged.
    """
    tokens = weights["embed_tokens.weight"]
    before = tokens.shape[1]
    random = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(len(tokens), width, generator=random), dim=1)
    lengths = PART * rare * tokens.norm(dim=1)
    wider = dict(weights)
    wider["embed_tokens.weight"] = torch.cat([tokens, directions * lengths[:, None]], dim=1)
    scale = (before / (before + width)) ** 0.5  # RMSNorm now takes its mean over more dimensions
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
    """Scale the word rows of `dense` in place to `share` of the mean squared length of the vectors of `texts`."""
    means = texts.means(weights["embed_tokens.weight"], torch.arange(len(texts.lengths))) * weights["norm.weight"]
    squares = (means @ dense.T).square().sum(dim=0)
    meaning, words = squares[:-width].sum(), squares[-width:].sum()
    dense[-width:] *= (share / (1 - share) * meaning / words).sqrt()
