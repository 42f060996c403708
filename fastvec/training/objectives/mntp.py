"""The MNTP task: packs texts into sequences, masks tokens, and computes the loss and its gradient.

Shapes: T packed tokens.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from fastvec.corpus.reader import Chunk
from fastvec.texts.packing import pack
from fastvec.texts.tokenizer import TextTokenizer
from fastvec.training.objectives.language_head import LanguageHead
from fastvec.training.objectives.losses import MaskedTokens, token_loss, token_scores
from fastvec.training.objectives.task import Batch, Pass, evaluated_at_once, split_by_length
from fastvec_kernels import to_device

IntArray = npt.NDArray[np.integer]
Hide = Callable[[IntArray, np.random.Generator], MaskedTokens]


class TokenTask:
    """MNTP or, with `next_tokens` as `hide`, pretraining of a causal decoder.

    Texts are concatenated and cut into sequences of `max_length` tokens. The remainder at a chunk's end becomes a
    shorter sequence without padding; a single token is dropped.
    """

    def __init__(
        self, tokenizer: TextTokenizer, head: LanguageHead, hide: Hide, *, max_length: int, at_once: int | None
    ) -> None:
        """Make the task; `at_once` sequences go through the model together, or the whole batch if it is None."""
        self._tokenizer, self._head, self._hide = tokenizer, head, hide
        self._max_length, self._at_once = max_length, at_once

    def examples_of(self, chunk: Chunk, admitted: npt.NDArray[np.bool_]) -> list[IntArray]:
        """Return the sequences of a chunk's admitted rows."""
        ids = self._tokenizer(texts_of(chunk, admitted)).ids
        cuts = range(self._max_length, len(ids), self._max_length)
        return [part for part in np.split(ids, cuts) if len(part) > 1]

    def learn(self, batch: Batch[IntArray], model: Pass) -> torch.Tensor:
        """Backpropagate the mean loss over all targets of the batch, on all ranks.

        Returns this rank's part of the loss times the number of ranks, so that the mean over ranks is the loss.
        """
        hidden = [self._hidden(ids, model.seed, number) for number, ids in enumerate(batch.examples)]
        targets = max(1, sum(len(one.labels) for one in hidden))
        total = torch.zeros((), device=model.device)
        parts = split_by_length([len(hidden[number].ids) for number in batch.own], self._at_once)
        for index, part in enumerate(parts):
            numbers = [batch.own[place] for place in part]
            with model.part(last=index == len(parts) - 1):
                loss = self._loss([hidden[number] for number in numbers], numbers, model) * (batch.ranks / targets)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def tokens(self, batch: Batch[IntArray]) -> int:
        """Return the number of tokens in `batch`, on all ranks."""
        return sum(len(ids) for ids in batch.examples)

    def evaluate(self, examples: Sequence[IntArray], model: Pass, *, size: int) -> dict[str, float]:
        """Return the mean loss over all targets of `examples`, and the accuracy.

        `at_once` sequences go through the model together, or up to `size` if it is None.
        """
        hidden = [self._hidden(ids, model.seed, number) for number, ids in enumerate(examples)]
        scores = []
        with torch.no_grad():
            for part in split_by_length([len(one.ids) for one in hidden], evaluated_at_once(self._at_once, size)):
                packed = pack([hidden[i].ids for i in part], device=model.device)
                places, labels = targets_of([hidden[i] for i in part], model.device)
                states = model.forward(packed, part)
                with model.autocast():
                    found = token_scores(states, places, labels, self._head, self._head.vocabulary)
                scores.append(torch.stack(found))
        loss, hits = torch.stack(scores).sum(dim=0).tolist()
        targets = max(1, sum(len(one.labels) for one in hidden))
        return {"loss": loss / targets, "accuracy": hits / targets}

    def _hidden(self, ids: IntArray, seed: int, number: int) -> MaskedTokens:
        return self._hide(ids, np.random.default_rng([seed, number]))

    def _loss(self, sequences: Sequence[MaskedTokens], numbers: Sequence[int], model: Pass) -> torch.Tensor:
        packed = pack([one.ids for one in sequences], device=model.device)
        states = model.forward(packed, numbers)
        places, labels = targets_of(sequences, model.device)
        with model.autocast():
            return token_loss(states, places, labels, self._head, self._head.vocabulary)


def targets_of(sequences: Sequence[MaskedTokens], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of the packed hidden states that predict the targets, and the targets: [M] each."""
    starts = np.cumsum([0, *(len(one.ids) for one in sequences[:-1])])
    places = np.concatenate([one.places + start for one, start in zip(sequences, starts, strict=True)])
    labels = np.concatenate([one.labels for one in sequences])
    return to_device(places.astype(np.int64), device), to_device(labels.astype(np.int64), device)


def texts_of(chunk: Chunk, admitted: npt.NDArray[np.bool_]) -> list[str]:
    """Return the admitted texts of a chunk that are not blank."""
    return [
        text for text, used in zip(chunk.texts.to_pylist(), admitted, strict=True) if used and text and text.strip()
    ]
