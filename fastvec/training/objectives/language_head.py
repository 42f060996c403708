"""The LM head of any decoder, apart from the decoder: final states in, logits out, as the family computes them."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput


class LanguageHead:
    """What stands between a decoder's last states and its logits: the projection, and a softcap or scale around it.

    Families write these into the forward of their causal model. So that forward is what runs, on a copy of the causal
    model that shares its weights and in whose decoder's place stands something that returns the states it is given.
    """

    def __init__(self, causal: PreTrainedModel) -> None:
        self._causal = copy.copy(causal)
        self._causal._modules = {**causal._modules, causal.base_model_prefix: _Given()}
        self.vocabulary = int(causal.config.vocab_size)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """`states` [M, D] after the final norm -> logits [M, V]."""
        logits: torch.Tensor = self._causal(inputs_embeds=states[None], use_cache=False).logits[0]
        return logits

    def parameters(self) -> Iterator[nn.Parameter]:
        return self._causal.parameters()


class _Given(nn.Module):
    """In the decoder's place: what is given as embeddings comes out as its last states."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **others: Any) -> "_States":
        return _States(last_hidden_state=inputs_embeds)

    @property
    def decoder(self) -> Self:
        """OPT's causal model calls a part of its decoder."""
        return self


@dataclass
class _States(ModelOutput):
    """What a decoder returns; of anything else that a family hands on (caches, router logits) there is none."""

    last_hidden_state: torch.Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)
