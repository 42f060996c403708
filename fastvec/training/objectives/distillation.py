"""Distillation: trains a text's vector to match a teacher's, by one Dense layer after the pooling if the widths differ.

A batch's loss is the error of its vectors and of their similarities, compared with the teacher's
(`losses.distillation`). The Dense layer starts as the least-squares map from the model's own vectors to the teacher's,
so training builds on what the model already represents.

Shapes: n texts, D dimensions of the teacher's vectors, H of the model's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from fastvec.corpus.reader import Chunk
from fastvec.errors import InputError
from fastvec.texts.tokenizer import TextTokenizer
from fastvec.training.objectives.losses import distillation
from fastvec.training.objectives.readout import Readout, Text, gather, holds_something, tokenized
from fastvec.training.objectives.task import Batch, Pass
from fastvec_kernels import to_device

FloatArray = npt.NDArray[np.float32]

FIT_TEXTS = 4096  # whose vectors determine the initial Dense layer
FIT_AT_ONCE = 64
RIDGE = 1e-3  # relative to the mean square of a dimension; keeps weights small where few texts leave them undetermined


@dataclass(frozen=True, slots=True)
class Taught:
    """A text and the teacher's vector [D] of it."""

    text: Text
    target: FloatArray


class DistilTask:
    """Trains the vectors of `readout` to match the teacher's, in the kept column `vectors` of the corpus."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        readout: Readout,
        *,
        vectors: str,
        width: int,
        at_once: int | None,
        file_of: Callable[[int], str],
    ) -> None:
        """`width` is D; `at_once` texts go through the model together, None means the whole batch.

        `file_of` returns the file of a row of the corpus, for error messages.
        """
        self._tokenizer, self._readout, self._file_of = tokenizer, readout, file_of
        self._vectors, self._width, self._at_once = vectors, width, at_once

    def examples_of(self, chunk: Chunk, admitted: npt.NDArray[np.bool_]) -> list[Taught]:
        """Return the examples of a chunk's admitted rows that have a text and a finite, nonzero vector.

        Raises InputError if a vector has another width.
        """
        column = chunk.kept.column(self._vectors)
        lengths = pc.list_value_length(column).fill_null(0).to_numpy()
        if len(wrong := np.flatnonzero((lengths != 0) & (lengths != self._width))):
            raise InputError(
                f"{self._file_of(chunk.first_row + int(wrong[0]))}: a vector in column {self._vectors!r} has "
                f"{lengths[wrong[0]]} dimensions: expected {self._width}, as in the first rows"
            )
        targets = matrix(column, lengths, self._width)
        norms = np.linalg.norm(targets, axis=1)
        usable = admitted & np.isfinite(norms) & (norms > 0)
        texts = chunk.texts.to_pylist()
        rows = [row for row in np.flatnonzero(usable) if holds_something(texts[row])]
        found = tokenized(self._tokenizer, [texts[row] for row in rows])
        return [Taught(text, targets[row]) for text, row in zip(found, rows, strict=True)]

    def learn(self, batch: Batch[Taught], model: Pass) -> torch.Tensor:
        """Backpropagate the loss over the batch, on all ranks.

        Returns this rank's part; the mean over ranks is the loss.
        """
        own = [batch.examples[number].text for number in batch.own]
        targets = targets_of(batch.examples, model.device)
        share = slice(batch.own.start, batch.own.stop)

        def loss_of(vectors: torch.Tensor) -> torch.Tensor:
            every = gather(vectors, [len(own)] * batch.ranks, batch.rank)
            return distillation(vectors, targets[share], every, targets)

        return self._readout.learn(own, batch.own, model, loss_of, at_once=self._at_once)

    def tokens(self, batch: Batch[Taught]) -> int:
        """Return the number of tokens in `batch`, on all ranks."""
        return sum(len(example.text.ids) for example in batch.examples)

    def evaluate(self, examples: Sequence[Taught], model: Pass, *, size: int) -> dict[str, float]:
        """Return the mean loss in batches of `size`, and the mean cosine between a text's vector and the teacher's."""
        losses, cosines = [], []
        with torch.no_grad():
            for begin in range(0, len(examples), size):
                part = examples[begin : begin + size]
                texts, targets = [one.text for one in part], targets_of(part, model.device)
                at_once = self._at_once or size
                vectors = self._readout.encode_in_parts(texts, range(len(texts)), model, at_once=at_once)
                losses.append(distillation(vectors, targets, vectors, targets) * len(part))
                cosines.append(torch.cosine_similarity(vectors, targets).sum())
        loss, cosine = (torch.stack(values).sum().item() / len(examples) for values in (losses, cosines))
        return {"loss": loss, "cosine": cosine}


def targets_of(examples: Sequence[Taught], device: torch.device) -> torch.Tensor:
    """Return the teacher's vectors [n, D]."""
    return to_device(np.stack([one.target for one in examples]), device)


def fitted_dense(examples: Sequence[Taught], readout: Readout, model: Pass) -> nn.Linear:
    """Return the initial Dense layer [H → D], fitted to the texts' vectors from `readout`, which must have none."""
    texts, targets = [one.text for one in examples], targets_of(examples, model.device)
    with torch.no_grad():
        hidden = readout.encode_in_parts(texts, range(len(texts)), model, at_once=FIT_AT_ONCE)
        return least_squares(hidden, targets)


def least_squares(hidden: torch.Tensor, targets: torch.Tensor) -> nn.Linear:
    """Return a Dense layer that maps `hidden` [n, H] to the directions of `targets` [n, D].

    W minimises Σ‖W h_i − v_i‖² + λ‖W‖² over the unit vectors v_i, with λ = `RIDGE` · n · the mean of h's squares.
    """
    hidden, targets = hidden.double(), torch.nn.functional.normalize(targets.double(), dim=-1)
    gram = hidden.T @ hidden
    gram.diagonal().add_(RIDGE * len(hidden) * hidden.square().mean())
    dense = nn.Linear(hidden.shape[1], targets.shape[1], bias=False, device=hidden.device)
    with torch.no_grad():
        dense.weight.copy_(torch.linalg.solve(gram, hidden.T @ targets).T)
    return dense


def matrix(column: pa.Array, lengths: npt.NDArray[np.integer], width: int) -> FloatArray:
    """Return a column of lists, of `lengths` [n] `width` or 0, as float32 [n, width]; a null or empty row is NaN."""
    found = np.full((len(column), width), np.nan, dtype=np.float32)
    found[lengths > 0] = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return found
