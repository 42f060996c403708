"""The contrastive tasks: SimCSE (a text and itself, under different dropout) and pairs with optional hard negatives.

A pair is a query and its positive, the document that answers it. A query's negatives are the other documents of the
batch, on all ranks.

Shapes: n texts, N documents, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from fastvec.corpus.reader import Chunk
from fastvec.texts.tokenizer import TextTokenizer
from fastvec.training.objectives.losses import alignment, info_nce, uniformity
from fastvec.training.objectives.readout import Readout, Text, gather, holds_something, tokenized
from fastvec.training.objectives.task import Batch, Pass, evaluated_at_once
from fastvec_kernels import to_device


@dataclass(frozen=True, slots=True)
class Group:
    """A query and its documents, the first of which answers it. In SimCSE, the query is its own only document."""

    query: Text
    documents: tuple[Text, ...]


class ContrastTask:
    """Trains text vectors with the InfoNCE loss."""

    def __init__(
        self,
        queries: TextTokenizer,
        documents: TextTokenizer,
        *,
        positive: str | None,
        negatives: Sequence[str],
        readout: Readout,
        temperature: float,
        at_once: int | None,
    ) -> None:
        """Make a task on pairs, with documents from the kept columns `positive` and `negatives`.

        Without `positive`, the task is SimCSE. `at_once` texts go through the model together; None: the whole batch.
        """
        self._queries, self._documents = queries, documents
        self._positive, self._negatives = positive, tuple(negatives)
        self._readout, self._scale, self._at_once = readout, 1 / temperature, at_once

    def examples_of(self, chunk: Chunk, admitted: npt.NDArray[np.bool_]) -> list[Group]:
        """Return the examples of a chunk's admitted rows that have a query and a positive; negatives are optional."""
        columns = [chunk.texts.to_pylist()]
        columns += [kept_texts(chunk, name) for name in (self._positive, *self._negatives) if name is not None]
        rows = [row for row, used in zip(zip(*columns, strict=True), admitted, strict=True) if used]
        needed = 1 if self._positive is None else 2
        rows = [row for row in rows if all(map(holds_something, row[:needed]))]
        queries = tokenized(self._queries, [row[0] for row in rows])
        if self._positive is None:
            return [Group(query, (query,)) for query in queries]
        documents = iter(
            tokenized(self._documents, [text for row in rows for text in row[1:] if holds_something(text)])
        )
        return [
            Group(query, tuple(next(documents) for text in row[1:] if holds_something(text)))
            for query, row in zip(queries, rows, strict=True)
        ]

    def learn(self, batch: Batch[Group], model: Pass) -> torch.Tensor:
        """Backpropagate the mean loss over the queries of the batch, on all ranks; returns this rank's loss."""
        layout = _Layout.of(batch, model.device)
        return self._readout.learn(
            layout.own_texts,
            layout.own_numbers,
            model,
            lambda vectors: self._loss(layout, vectors),
            at_once=self._at_once,
            most=layout.queries + max(layout.documents),
        )

    def tokens(self, batch: Batch[Group]) -> int:
        """Return the number of tokens in `batch`, on all ranks."""
        return sum(len(text.ids) for group in batch.examples for text in (group.query, *group.documents))

    def evaluate(self, examples: Sequence[Group], model: Pass, *, size: int) -> dict[str, float]:
        """Return the mean loss in batches of `size`, alignment of queries and positives, and uniformity of the queries.

        Uniformity needs at least two examples.
        """
        losses, queries, answers = [], [], []
        with torch.no_grad():
            for begin in range(0, len(examples), size):
                batch = Batch(step=0, examples=examples[begin : begin + size], rank=0, ranks=1)
                layout = _Layout.of(batch, model.device)
                texts, numbers = layout.own_texts, layout.own_numbers
                at_once = evaluated_at_once(self._at_once, size)
                vectors = self._readout.encode_in_parts(texts, numbers, model, at_once=at_once)
                losses.append(self._loss(layout, vectors) * len(batch.examples))
                queries.append(vectors[: layout.queries])
                answers.append(vectors[layout.queries :][layout.own])
        loss = torch.stack(losses).sum().item() / len(examples)
        query, answer = torch.cat(queries), torch.cat(answers)
        measured = {"loss": loss, "alignment": alignment(query, answer).item()}
        return measured if len(query) < 2 else {**measured, "uniformity": uniformity(query).item()}

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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """The order and keys of a batch's texts. Every rank knows all of it, so the ranks exchange only vectors."""

    rank: int
    queries: int  # of this rank, n
    documents: list[int]  # of each rank
    own_texts: list[Text]  # this rank's queries, then its documents
    own_numbers: list[int]  # identify each of these texts to the noise
    own: torch.Tensor  # [n] index of the document that answers each query, among the documents of all ranks
    query_keys: torch.Tensor  # [n]
    document_keys: torch.Tensor  # [N]
    owner_keys: torch.Tensor  # [N] key of the query that each document answers, −1 for a hard negative

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
            return to_device(np.asarray(values, dtype=np.int64), device)

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


def kept_texts(chunk: Chunk, name: str) -> list[str | None]:
    texts: list[str | None] = chunk.kept.column(name).cast(pa.large_string()).to_pylist()
    return texts
