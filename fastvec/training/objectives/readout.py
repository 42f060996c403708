"""Encodes texts during training: tokenizes them, runs forward and backward in parts, gathers vectors from all ranks.

Gradient caching (Gao et al., 2021) allows batches of any size. First, the texts are encoded in parts without a
graph, and the loss yields the gradient of each vector. Then each part goes through the model again, with a graph, to
backpropagate the gradients of its vectors. The result is the gradient of the whole batch, because the noise is the same
in both passes.

Shapes: n texts, D dimensions.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from fastvec.checkpoints.sentence_transformers import Pooling
from fastvec.texts.packing import Packed, pack
from fastvec.texts.tokenizer import TextTokenizer
from fastvec.training.objectives.task import Pass, split_by_length
from fastvec_kernels import dropout, pool, to_device

IntArray = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Text:
    """A tokenized text: its ids [L], the span to pool, and a hash of the text that identifies copies."""

    ids: IntArray
    span: tuple[int, int]
    key: int


def tokenized(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[Text]:
    found = tokenizer(texts)
    spans = found.spans.tolist()
    return [
        Text(ids=found.sequence(i), span=(spans[i][0], spans[i][1]), key=key_of(text)) for i, text in enumerate(texts)
    ]


def key_of(text: str) -> int:
    """Return a 63-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def holds_something(text: str | None) -> bool:
    return text is not None and bool(text.strip())


@dataclass(frozen=True, slots=True)
class Readout:
    """Computes a text's vector: pools the hidden states of its span in float32, applies `dense`, does not normalize."""

    pooling: Pooling
    dense: nn.Linear | None = None

    def encode(self, texts: Sequence[Text], numbers: Sequence[int], model: Pass) -> torch.Tensor:
        """Return the vectors [n, D] of texts, from one forward; `numbers` identify the texts to the noise."""
        packed = pack([text.ids for text in texts], np.array([text.span for text in texts]), device=model.device)
        vectors = pool(model.forward(packed, numbers), packed.spans, self.pooling, normalize=False)
        dense: torch.Tensor = vectors if self.dense is None else self.dense(vectors)
        return dense

    def encode_in_parts(
        self,
        texts: Sequence[Text],
        numbers: Sequence[int],
        model: Pass,
        *,
        at_once: int | None,
        most: int | None = None,
    ) -> torch.Tensor:
        """Return the vectors [n, D] of texts, in order, from forwards of at most `at_once` texts of similar length.

        None means one forward for all texts. There are as many forwards as `most` texts take, by default just enough.
        """
        parts = split_by_length([len(text.ids) for text in texts], at_once, most)
        vectors = torch.cat([self._part(texts, numbers, part, model) for part in parts])
        return vectors[to_device(np.argsort(np.concatenate(parts)), model.device)]

    def learn(
        self,
        texts: Sequence[Text],
        numbers: Sequence[int],
        model: Pass,
        loss_of: Callable[[torch.Tensor], torch.Tensor],
        *,
        at_once: int | None,
        most: int,
    ) -> torch.Tensor:
        """Backpropagate `loss_of` the vectors [n, D] of texts, and return it; several parts use gradient caching.

        `most` is the largest n of all ranks, so that they take the same number of parts.
        """
        parts = split_by_length([len(text.ids) for text in texts], at_once, most)
        with torch.set_grad_enabled(len(parts) == 1):
            vectors = self.encode_in_parts(texts, numbers, model, at_once=at_once, most=most)
        if len(parts) == 1:
            loss = loss_of(vectors)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        loss = loss_of(vectors.requires_grad_())
        (gradients,) = torch.autograd.grad(loss, [vectors])
        for index, part in enumerate(parts):
            gradient = gradients[to_device(np.array(part, dtype=np.int64), model.device)]
            with model.part(last=index == len(parts) - 1):
                self._part(texts, numbers, part, model).backward(gradient)  # type: ignore[no-untyped-call]
        return loss.detach()

    def _part(self, texts: Sequence[Text], numbers: Sequence[int], part: Sequence[int], model: Pass) -> torch.Tensor:
        """Return the vectors of a part. An empty part runs a text all the same, because other ranks run theirs."""
        run = part or [0]
        return self.encode([texts[i] for i in run], [numbers[i] for i in run], model)[: len(part)]


def gather(vectors: torch.Tensor, counts: Sequence[int], rank: int) -> torch.Tensor:
    """Return the vectors of all ranks [Σ counts, D], `counts[r]` from rank r; gradients are summed over ranks."""
    if len(counts) == 1:
        return vectors
    gathered: torch.Tensor = _Gather.apply(vectors, counts, rank)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor, counts: Sequence[int], rank: int) -> torch.Tensor:
        ctx.counts, ctx.rank = counts, rank
        padded = vectors.new_zeros((max(counts), vectors.shape[1]))
        padded[: len(vectors)] = vectors
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *above: torch.Tensor) -> tuple[Any, ...]:
        whole = above[0].contiguous()
        dist.all_reduce(whole)
        begin = sum(ctx.counts[: ctx.rank])
        return whole[begin : begin + ctx.counts[ctx.rank]], None, None


def run_kernels(decoder: Callable[[Packed], torch.Tensor], pooling: Pooling, packed: Packed) -> None:
    """Call the kernels of a training step's forward, for `call_kernels`: the decoder's, dropout's and pooling's."""
    states = decoder(packed)
    places = torch.stack([packed.positions, packed.positions], dim=1)
    pool(dropout(states, places, p=0.5, seed=0), packed.spans, pooling, normalize=False)
