"""The contrastive tasks: SimCSE (a text against itself under other noise) and pairs (query, positive, hard negatives).

A batch's negatives are all other documents of all ranks. Gradient caching (Gao et al., 2021) lets it be any size: texts
are encoded in parts without a graph, the loss gives each vector its gradient, and the parts go through the model once
more to pass that on. The gradient is that of the whole batch, for the noise is the same in both passes.

Shapes: n texts, N documents, D dimensions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.distributed as dist

from fastvec.objectives import alignment, info_nce, uniformity
from fastvec.packed import pack
from fastvec.reader import Chunk
from fastvec.sentence_folder import Pooling
from fastvec.tokenize import TextTokenizer
from fastvec.training.tasks import Batch, Pass, split_by_length
from fastvec_kernels import pool

IntArray = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Text:
    """A tokenised text: ids [L], the span that is pooled, and a hash by which copies are known."""

    ids: IntArray
    span: tuple[int, int]
    key: int


@dataclass(frozen=True, slots=True)
class Group:
    """A query and its documents, the first of which answers it; SimCSE's two are one text."""

    query: Text
    documents: tuple[Text, ...]


class ContrastTask:
    """InfoNCE over the vectors of texts."""

    def __init__(
        self,
        queries: TextTokenizer,
        documents: TextTokenizer,
        *,
        positive: str | None,
        negatives: Sequence[str],
        pooling: Pooling,
        temperature: float,
        at_once: int | None,
    ) -> None:
        """Columns `positive` and `negatives` are kept ones of the corpus; without a positive it is SimCSE.

        `at_once` texts go through the model together, omitted all of a batch.
        """
        self._queries, self._documents = queries, documents
        self._positive, self._negatives = positive, tuple(negatives)
        self._pooling, self._scale, self._at_once = pooling, 1 / temperature, at_once

    def examples_of(self, chunk: Chunk, admitted: npt.NDArray[np.bool_]) -> list[Group]:
        """The rows of a chunk that are admitted and have a query and a positive; a negative may be missing."""
        columns = [chunk.texts.to_pylist()]
        columns += [kept_texts(chunk, name) for name in (self._positive, *self._negatives) if name is not None]
        rows = [row for row, used in zip(zip(*columns, strict=True), admitted, strict=True) if used]
        needed = 1 if self._positive is None else 2
        rows = [row for row in rows if all(map(_holds_something, row[:needed]))]
        queries = tokenized(self._queries, [row[0] for row in rows])
        if self._positive is None:
            return [Group(query, (query,)) for query in queries]
        documents = iter(
            tokenized(self._documents, [text for row in rows for text in row[1:] if _holds_something(text)])
        )
        return [
            Group(query, tuple(next(documents) for text in row[1:] if _holds_something(text)))
            for query, row in zip(queries, rows, strict=True)
        ]

    def learn(self, batch: Batch[Group], model: Pass) -> torch.Tensor:
        """Take the gradient of the mean loss over the queries of the batch, on all ranks; returns this rank's loss."""
        layout = _Layout.of(batch, model.device)
        texts, numbers = layout.own_texts, layout.own_numbers
        parts = split_by_length([len(text.ids) for text in texts], self._at_once)
        order = [place for part in parts for place in part]
        back = torch.from_numpy(np.argsort(order)).to(model.device)
        encode = [_Encoding(self, [texts[i] for i in part], [numbers[i] for i in part], model) for part in parts]
        if len(encode) == 1:
            loss = self._loss(layout, encode[0]().index_select(0, back))
            model.backward(loss, last=True)
            return loss.detach()
        with torch.no_grad():
            vectors = torch.cat([part() for part in encode])
        vectors.requires_grad_()
        loss = self._loss(layout, vectors.index_select(0, back))
        (gradients,) = torch.autograd.grad(loss, [vectors])
        for index, (part, gradient) in enumerate(zip(encode, torch.split(gradients, [*map(len, parts)]), strict=True)):
            model.backward(part(), gradient, last=index == len(parts) - 1)
        return loss.detach()

    def tokens(self, batch: Batch[Group]) -> int:
        """How many tokens a step over `batch` takes, on all ranks."""
        return sum(len(text.ids) for group in batch.examples for text in (group.query, *group.documents))

    def evaluate(self, examples: Sequence[Group], model: Pass, *, size: int) -> dict[str, float]:
        """The mean loss in batches of `size`, alignment of queries and answers, uniformity of the queries."""
        losses, queries, answers = [], [], []
        with torch.no_grad():
            for begin in range(0, len(examples), size):
                batch = Batch(step=0, examples=examples[begin : begin + size], rank=0, ranks=1)
                layout = _Layout.of(batch, model.device)
                texts, numbers = layout.own_texts, layout.own_numbers
                vectors = encode_in_parts(texts, numbers, self._pooling, model, at_once=self._at_once or size)
                losses.append(self._loss(layout, vectors) * len(batch.examples))
                queries.append(vectors[: layout.queries])
                answers.append(vectors[layout.queries :][layout.own])
        loss = torch.stack(losses).sum().item() / len(examples)
        query, answer = torch.cat(queries), torch.cat(answers)
        measured = {"loss": loss, "alignment": alignment(query, answer).item()}
        return measured if len(query) < 2 else {**measured, "uniformity": uniformity(query).item()}

    def encode(self, texts: Sequence[Text], numbers: Sequence[int], model: Pass) -> torch.Tensor:
        """The pooled vectors [n, D] of texts, in one forward."""
        return encode(texts, numbers, self._pooling, model)

    def _loss(self, layout: "_Layout", vectors: torch.Tensor) -> torch.Tensor:
        queries, documents = vectors[: layout.queries], vectors[layout.queries :]
        return info_nce(
            queries,
            gather(documents, layout.documents, layout.rank),
            layout.own,
            scale=self._scale,
            query_keys=layout.query_keys,
            document_keys=layout.document_keys,
            owner_keys=layout.owner_keys,
        )


@dataclass(frozen=True, slots=True)
class _Encoding:
    """One part of a batch, ready to be encoded, with a graph or without."""

    task: ContrastTask
    texts: Sequence[Text]
    numbers: Sequence[int]
    model: Pass

    def __call__(self) -> torch.Tensor:
        return self.task.encode(self.texts, self.numbers, self.model)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """Where the texts of a batch stand. All of it is known on every rank, so that only vectors travel."""

    rank: int
    queries: int  # of this rank, n
    documents: list[int]  # of each rank
    own_texts: list[Text]  # this rank's queries, then its documents
    own_numbers: list[int]  # what the noise knows each of them by
    own: torch.Tensor  # [n] the document, of all ranks, that answers each query
    query_keys: torch.Tensor  # [n]
    document_keys: torch.Tensor  # [N]
    owner_keys: torch.Tensor  # [N] the key of the query that a document answers, −1 for a hard negative

    @classmethod
    def of(cls, batch: Batch[Group], device: torch.device) -> "_Layout":
        share = len(batch.own)
        groups = [batch.examples[number] for number in batch.own]
        slots = 1 + max(len(group.documents) for group in batch.examples)
        firsts = np.cumsum([0, *(len(group.documents) for group in batch.examples)])
        documents = [
            sum(len(group.documents) for group in batch.examples[rank * share : (rank + 1) * share])
            for rank in range(batch.ranks)
        ]
        owners = [
            group.query.key if place == 0 else -1 for group in batch.examples for place in range(len(group.documents))
        ]

        def on_device(values: Any) -> torch.Tensor:
            return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(device, non_blocking=True)

        return cls(
            rank=batch.rank,
            queries=share,
            documents=documents,
            own_texts=[*(group.query for group in groups), *(text for group in groups for text in group.documents)],
            own_numbers=[
                *(number * slots for number in batch.own),
                *(number * slots + 1 + j for number in batch.own for j in range(len(batch.examples[number].documents))),
            ],
            own=on_device(firsts[batch.own.start : batch.own.stop]),
            query_keys=on_device([group.query.key for group in groups]),
            document_keys=on_device([text.key for group in batch.examples for text in group.documents]),
            owner_keys=on_device(owners),
        )


def encode(texts: Sequence[Text], numbers: Sequence[int], pooling: Pooling, model: Pass) -> torch.Tensor:
    """The pooled vectors [n, D] of texts, in one forward; in float32 and not normalised."""
    packed = pack([text.ids for text in texts], np.array([text.span for text in texts]), device=model.device)
    return pool(model.forward(packed, numbers), packed.spans, pooling, normalize=False)


def encode_in_parts(
    texts: Sequence[Text], numbers: Sequence[int], pooling: Pooling, model: Pass, *, at_once: int
) -> torch.Tensor:
    """The same, in order, of any number of texts: `at_once` of like length in a forward."""
    parts = split_by_length([len(text.ids) for text in texts], at_once)
    vectors = torch.cat([encode([texts[i] for i in p], [numbers[i] for i in p], pooling, model) for p in parts])
    return vectors[torch.from_numpy(np.argsort(np.concatenate(parts))).to(model.device)]


def gather(vectors: torch.Tensor, counts: Sequence[int], rank: int) -> torch.Tensor:
    """The vectors of all ranks [Σ counts, D], of which rank r has `counts[r]`; its gradients are summed over ranks."""
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


def tokenized(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[Text]:
    found = tokenizer(texts)
    spans = found.spans.tolist()
    return [
        Text(ids=found.sequence(i), span=(spans[i][0], spans[i][1]), key=key_of(text)) for i, text in enumerate(texts)
    ]


def key_of(text: str) -> int:
    """A hash of 63 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def kept_texts(chunk: Chunk, name: str) -> list[str | None]:
    texts: list[str | None] = chunk.kept.column(name).cast(pa.large_string()).to_pylist()
    return texts


def _holds_something(text: str | None) -> bool:
    return text is not None and bool(text.strip())
