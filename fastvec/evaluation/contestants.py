"""Whoever takes part: something that has vectors of texts, or searches without any.

Shapes: n and m texts, D dimensions, q queries.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastvec.checkpoints.sentence_transformers import Similarity
from fastvec.encoder import Encoder
from fastvec.encoding.similarity import SMALLEST_NORM, unit
from fastvec.evaluation.top_k import Rows, Scores, top_k
from fastvec.settings import EncoderSettings

Array = npt.NDArray[Any]


class Contestant(ABC):
    """Has vectors of texts. Matrices are arrays, or sparse in CSR format."""

    baseline = False
    similarity: Similarity = "cosine"
    about: dict[str, Any] | None = None  # what a reader of the scores should know of a model

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def vectors(self, first: Sequence[str], second: Sequence[str]) -> tuple[Any, Any]:
        """Return the vectors [n, D] and [m, D] of two lists of texts of the same kind."""

    def retrieval_vectors(self, queries: Sequence[str], documents: Sequence[str]) -> tuple[Any, Any]:
        """Return the vectors [n, D] and [m, D] of queries and of documents."""
        return self.vectors(queries, documents)

    def similarities(self, first: Sequence[str], second: Sequence[str]) -> Array:
        """Return the similarity [n] of each pair of texts."""
        return pairwise(*self.vectors(first, second), self.similarity)

    def nearest(self, texts: Sequence[str], others: Sequence[str]) -> Rows:
        """Return, for each of `texts` [n], the place of the most similar one of `others`, or of the first of these."""
        return top_k(*comparable(*self.vectors(texts, others), self.similarity), 1)[1][:, 0]

    def search(self, queries: Sequence[str], documents: Sequence[str], k: int) -> tuple[Scores, Rows]:
        """Return the scores and places [q, min(k, m)] of the documents that are most similar to each query."""
        return top_k(*comparable(*self.retrieval_vectors(queries, documents), self.similarity), k)


class Model(Contestant):
    """An encoder: queries and documents have the checkpoint's prompts for them, or queries `query_instruction`.

    All other texts have `instruction`.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        instruction: str | None = None,
        query_instruction: str | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__(model_name(encoder.settings))
        settings = encoder.settings
        self.similarity = settings.checkpoint.similarity
        self.about = {
            "name": self.name,
            "revision": settings.checkpoint.revision,
            "weights": settings.checkpoint.weights_hash,
            "dtype": settings.arithmetic,
            "dims": settings.dims,
            "max_length": settings.max_length,
            "similarity": self.similarity,
            "instruction": instruction,
            "query_instruction": query_instruction,
        }
        self._encoder = encoder
        self._instruction, self._query_instruction = instruction, query_instruction
        self._show = show_progress_bar

    def vectors(self, first: Sequence[str], second: Sequence[str]) -> tuple[Array, Array]:
        found = self._encoder.encode([*first, *second], self._instruction, show_progress_bar=self._show)
        return found[: len(first)], found[len(first) :]

    def retrieval_vectors(self, queries: Sequence[str], documents: Sequence[str]) -> tuple[Array, Array]:
        encoder, show = self._encoder, self._show
        first = encoder.encode_query(queries, self._query_instruction, show_progress_bar=show)
        return first, encoder.encode_document(documents, show_progress_bar=show)


class Fitted(Contestant):
    """Vectors by a function that is fitted on all texts of a task, and returns rows of length 1."""

    baseline = True
    similarity: Similarity = "dot"

    def __init__(self, name: str, embed: Callable[[list[str]], Any]) -> None:
        super().__init__(name)
        self._embed = embed

    def vectors(self, first: Sequence[str], second: Sequence[str]) -> tuple[Any, Any]:
        found = self._embed([*first, *second])
        return found[: len(first)], found[len(first) :]


def model_name(settings: EncoderSettings) -> str:
    """Return the name of the checkpoint, and of the adapters that were given in addition."""
    checkpoint = settings.checkpoint
    return "+".join([checkpoint.name, *(Path(adapter).name for adapter in checkpoint.added)])


def pairwise(first: Any, second: Any, similarity: Similarity) -> Array:
    """Return the similarity [n] of each row of `first` [n, D] and the same row of `second` [n, D]."""
    if not isinstance(first, np.ndarray):  # sparse: rows of length 1
        return np.asarray(first.multiply(second).sum(axis=1)).ravel()
    if similarity == "euclidean":
        return -np.asarray(np.linalg.norm(first - second, axis=1))
    if similarity == "manhattan":
        return -np.asarray(np.abs(first - second).sum(axis=1))
    if similarity == "cosine":
        first, second = unit(first), unit(second)
    return np.asarray((first * second).sum(axis=1))


def comparable(queries: Any, documents: Any, similarity: Similarity) -> tuple[Any, Any]:
    """Return matrices whose dot products order the documents of each query as `similarity` does.

    The vectors that are given are overwritten for the cosine.

    Raises ValueError for Manhattan distances, which no dot product orders.
    """
    if similarity == "manhattan":
        raise ValueError("no dot product orders by Manhattan distance")
    if similarity == "cosine":
        for vectors in (queries, documents):  # in place: a copy of the documents can be most of the memory
            lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
            vectors /= np.maximum(lengths, np.float32(SMALLEST_NORM))
        return queries, documents
    if similarity == "euclidean":  # -|q - d|² = 2 (q·d - |d|²/2) - |q|², whose last term is the same for all documents
        halves = np.square(documents).sum(axis=1, keepdims=True) / 2
        ones = np.ones((len(queries), 1), dtype=queries.dtype)
        return np.hstack([queries, ones]), np.hstack([documents, -halves])
    return queries, documents
