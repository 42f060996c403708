"""Distillation: trains a model's text vectors to match a teacher's.

The loss compares a batch's vectors, the similarities between them and their nearest neighbors with the teacher's
(`losses.distillation`). Random texts are hardly related, and neighbors among them teach little: therefore half of the
batches have one topic each, by the teacher's vectors (`topics`). A Dense layer after the pooling maps H to D: the
checkpoint's, or, if it has none and the widths differ, a new one. A new layer starts as the least-squares map from the
model's own vectors to the teacher's, so training builds on what the model already represents.

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
from fastvec.training.objectives.losses import NEIGHBOR_WEIGHT, distillation
from fastvec.training.objectives.readout import Readout, Text, gather, holds_something, tokenized
from fastvec.training.objectives.task import Batch, Pass, evaluated_at_once
from fastvec.training.objectives.topics import half_by_topic
from fastvec_kernels import to_device

FloatArray = npt.NDArray[np.float32]

FIT_TEXTS = 4096  # used to fit the initial Dense layer
FIT_AT_ONCE = 64
RIDGE = 1e-3  # relative to the mean square of a dimension; keeps weights small that few texts leave undetermined


@dataclass(frozen=True, slots=True)
class DistilExample:
    """A text and the teacher's vector [D] for it."""

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
        """Make the task for vectors of `width` D; `at_once` texts go through the model together, None: the whole batch.

        `file_of` returns the file that contains a row of the corpus, for error messages.
        """
        self._tokenizer, self._readout, self._file_of = tokenizer, readout, file_of
        self._vectors, self._width, self._at_once = vectors, width, at_once

    def examples_of(self, chunk: Chunk, admitted: npt.NDArray[np.bool_]) -> list[DistilExample]:
        """Return the examples of a chunk's admitted rows that have a text and a finite, nonzero vector.

        Raises InputError if a vector is not `width` wide.
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
        return [DistilExample(text, targets[row]) for text, row in zip(found, rows, strict=True)]

    def learn(self, batch: Batch[DistilExample], model: Pass) -> torch.Tensor:
        """Backpropagate the loss over the batch, on all ranks.

        Returns this rank's part; the mean over ranks is the loss.
        """
        own = [batch.examples[number].text for number in batch.own]
        targets = targets_of(batch.examples, model.device)
        share = slice(batch.own.start, batch.own.stop)

        def loss_of(vectors: torch.Tensor) -> torch.Tensor:
            every = gather(vectors, [len(own)] * batch.ranks, batch.rank)
            return distillation(
                vectors, targets[share], every, targets, first=share.start, neighbor_weight=NEIGHBOR_WEIGHT
            )

        return self._readout.learn(own, batch.own, model, loss_of, at_once=self._at_once, most=len(own))

    def tokens(self, batch: Batch[DistilExample]) -> int:
        """Return the number of tokens in `batch`, on all ranks."""
        return sum(len(example.text.ids) for example in batch.examples)

    def evaluate(self, examples: Sequence[DistilExample], model: Pass, *, size: int) -> dict[str, float]:
        """Return the mean loss in batches of `size`, and the mean cosine between a text's vector and the teacher's."""
        losses, cosines = [], []
        with torch.no_grad():
            for begin in range(0, len(examples), size):
                part = examples[begin : begin + size]
                texts, targets = [one.text for one in part], targets_of(part, model.device)
                at_once = evaluated_at_once(self._at_once, size)
                vectors = self._readout.encode_in_parts(texts, range(len(texts)), model, at_once=at_once)
                error = distillation(vectors, targets, vectors, targets, neighbor_weight=NEIGHBOR_WEIGHT)
                losses.append(error * len(part))
                cosines.append(torch.cosine_similarity(vectors, targets).sum())
        loss, cosine = (torch.stack(values).sum().item() / len(examples) for values in (losses, cosines))
        return {"loss": loss, "cosine": cosine}


def by_topic(
    examples: Sequence[DistilExample], lead: int, size: int, random: np.random.Generator
) -> npt.NDArray[np.integer]:
    """Return an order of `examples` in which half of the batches have one topic each (`topics`)."""
    return half_by_topic((one.target for one in examples), lead, size, random)


def targets_of(examples: Sequence[DistilExample], device: torch.device) -> torch.Tensor:
    """Return the teacher's vectors [n, D]."""
    return to_device(np.stack([one.target for one in examples]), device)


def fitted_dense(examples: Sequence[DistilExample], readout: Readout, model: Pass) -> nn.Linear:
    """Return the initial Dense layer [H → D], fitted to vectors from `readout`, which must have no Dense layer."""
    texts, targets = [one.text for one in examples], targets_of(examples, model.device)
    with torch.no_grad():
        hidden = readout.encode_in_parts(texts, range(len(texts)), model, at_once=FIT_AT_ONCE)
        return least_squares(hidden, targets)


def least_squares(hidden: torch.Tensor, targets: torch.Tensor) -> nn.Linear:
    """Return a Dense layer that maps `hidden` [n, H] to the directions of `targets` [n, D].

    W minimizes Σ‖W h_i − v_i‖² + λ‖W‖² over the unit vectors v_i, with λ = `RIDGE` · n · the mean of h's squares.
    """
    hidden, targets = hidden.double(), torch.nn.functional.normalize(targets.double(), dim=-1)
    gram = hidden.T @ hidden
    gram.diagonal().add_(RIDGE * len(hidden) * hidden.square().mean())
    dense = nn.Linear(hidden.shape[1], targets.shape[1], bias=False, device=hidden.device)
    with torch.no_grad():
        dense.weight.copy_(torch.linalg.solve(gram, hidden.T @ targets).T)
    return dense


def matrix(column: pa.Array, lengths: npt.NDArray[np.integer], width: int) -> FloatArray:
    """Return a list column as float32 [n, width], with NaN for a null or empty row; `lengths` [n] are `width` or 0."""
    found = np.full((len(column), width), np.nan, dtype=np.float32)
    found[lengths > 0] = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return found
