"""The LM head of any decoder, without the decoder: maps final hidden states to logits as the family does."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput


class LanguageHead:
    """Computes logits from a decoder's final hidden states: the projection, and any softcap or scale around it.

    Families write these into the forward of their causal model. Therefore that forward runs, on a copy of the causal
    model that shares its weights, and whose decoder is replaced by a module that returns the hidden states it is given.
    """

    def __init__(self, causal: PreTrainedModel) -> None:
        self._causal = copy.copy(causal)
        self._causal._modules = {**causal._modules, causal.base_model_prefix: _Given()}
        self.vocabulary = int(causal.config.vocab_size)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Map hidden states [M, D] after the final norm to logits [M, V]."""
        logits: torch.Tensor = self._causal(inputs_embeds=states[None], use_cache=False).logits[0]
        return logits

    def parameters(self) -> Iterator[nn.Parameter]:
        return self._causal.parameters()


class _Given(nn.Module):
    """Replaces the decoder: returns the given embeddings as the final hidden states."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **others: Any) -> "_States":
        return _States(last_hidden_state=inputs_embeds)

    @property
    def decoder(self) -> Self:
        """OPT's causal model calls this attribute of its base model."""
        return self


@dataclass
class _States(ModelOutput):
    """A decoder's output. Anything else that a family passes on (caches, router logits) is None."""

    last_hidden_state: torch.Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)
