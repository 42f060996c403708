"""The implementations that `benchmarks.forward` compares, on one model with random weights.

fastvec runs packed batches, as its encoder makes them. transformers runs batches sorted by length and padded, as
sentence-transformers does. Both return mean pooled, normalized vectors, those of the longest text first.

Shapes: n texts, L tokens of the longest, D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.engines.engines import Missing
from benchmarks.engines.random_decoder import (
    IntArray,
    RandomDecoder,
    fp8_decoder,
    fused_decoder,
    fused_vectors,
    random_model,
    random_texts,
)
from benchmarks.reporting.results import first_line
from fastvec.decoders.fused import FusedDecoder
from fastvec.settings import runs_fp8
from fastvec.texts.batching import token_batches
from fastvec.texts.packing import Packed, pack
from fastvec_kernels import to_device

FASTVEC, FP8, TRANSFORMERS = "fastvec", "fastvec, fp8", "transformers, SDPA"
NAMES = (FASTVEC, FP8, TRANSFORMERS)
# Texts to compare vectors on, in two batches: of unequal lengths, and of equal ones, where transformers has no mask.
CHECKED = ((1, 3, 17, 64, 200), (50, 50, 50))
# The least cosine with transformers' vectors in the same dtype. Wrong attention gives 0.3 to 0.8 on random weights.
# fp8 has three bits of mantissa: only gross errors can be told from rounding.
LEAST_COSINE = {"float32": 0.999, "bfloat16": 0.99}
LEAST_COSINE_FP8 = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Implementation:
    """A loaded implementation. `forward` returns the vectors [n, D] of one of the `batches` of texts and a budget."""

    batches: Callable[[Sequence[IntArray], int], Sequence[Any]]
    forward: Callable[[Any], torch.Tensor]
    weights: int  # bytes on the device
    cosine: float = 1.0  # the least one with transformers' vectors

    def vectors(self, texts: Sequence[IntArray], budget: int) -> torch.Tensor:
        return torch.cat([self.forward(batch) for batch in self.batches(texts, budget)])


def load_implementations(
    decoder: RandomDecoder, names: Sequence[str], *, positions: int, dtype: str, device: str
) -> dict[str, Implementation | str]:
    """Return each implementation, checked against transformers, or why it does not run; to call in inference mode."""
    model = random_model(decoder, positions=positions, dtype=dtype, device=device)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    reference = Implementation(
        batches=partial(padded_batches, device=device), forward=partial(padded_vectors, model), weights=weights
    )
    texts = [random_texts([min(length, positions) for length in lengths], decoder.vocabulary) for lengths in CHECKED]
    budget = positions * max(map(len, texts))  # one batch each
    expected = torch.cat([reference.vectors(some, budget) for some in texts])
    fuse = cache(partial(fused_decoder, decoder, model, positions=positions, device=device))
    found: dict[str, Implementation | str] = {}
    for name in names:
        try:
            one = reference if name == TRANSFORMERS else _fastvec(decoder, fuse, name, positions, weights, device)
            vectors = torch.cat([one.vectors(some, budget) for some in texts])
            one = replace(one, cosine=float(F.cosine_similarity(vectors, expected).min()))
        except Missing as reason:
            found[name] = str(reason)
        except torch.OutOfMemoryError:
            found[name] = "out of memory"
        except Exception as error:  # whatever a kernel or its compiler raises, measure the others
            found[name] = f"FAILED: {first_line(error)}"
        else:
            least = LEAST_COSINE_FP8 if name == FP8 else LEAST_COSINE[dtype]
            wrong = not one.cosine >= least  # NaN is wrong too
            found[name] = f"FAILED: cosine {one.cosine:.4f}, expected at least {least}" if wrong else one
    return found


def _fastvec(
    decoder: RandomDecoder, fuse: Callable[[], FusedDecoder], name: str, positions: int, weights: int, device: str
) -> Implementation:
    if name == FP8 and not runs_fp8(device):
        raise Missing("needs a GPU with fp8")
    fused = fuse()
    if name == FP8:
        fused = fp8_decoder(decoder, fused, positions=positions, device=device)
        weights += decoder.sizes.parameters  # a byte each; the encoder keeps those in bf16 too
    return Implementation(
        batches=partial(packed_batches, device=device), forward=partial(fused_vectors, fused), weights=weights
    )


def packed_batches(texts: Sequence[IntArray], budget: int, *, device: str) -> list[Packed]:
    batches = token_batches(np.array([len(text) for text in texts]), budget)
    return [pack([texts[row] for row in rows], device=device) for rows in batches]


@dataclass(frozen=True, kw_only=True, slots=True)
class Padded:
    """A batch padded on the right."""

    ids: torch.Tensor  # [n, L] int64
    mask: torch.Tensor  # [n, L] int64, 1 for tokens of a text


def padded_batches(texts: Sequence[IntArray], budget: int, *, device: str) -> list[Padded]:
    """Return batches of at most `budget` tokens with their padding; a longer text is a batch of its own."""
    ordered = sorted(texts, key=len, reverse=True)
    batches, begin = [], 0
    while begin < len(ordered):
        longest = len(ordered[begin])
        chosen = ordered[begin : begin + max(1, budget // longest)]
        begin += len(chosen)
        ids, mask = np.zeros((2, len(chosen), longest), dtype=np.int64)
        for row, text in enumerate(chosen):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        batches.append(Padded(ids=to_device(ids, torch.device(device)), mask=to_device(mask, torch.device(device))))
    return batches


def padded_vectors(model: Any, batch: Padded) -> torch.Tensor:
    states = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state
    mask = batch.mask[..., None]
    pooled = (states * mask).sum(dim=1).float() / mask.sum(dim=1)
    return F.normalize(pooled, dim=-1)
