"""The LM head of any supported decoder, without the decoder: maps final hidden states to logits as the family does."""

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

    Families implement these in the forward of their causal model. Therefore this class runs that forward, on a copy of
    the causal model that shares its weights. In the copy, a module that returns its input replaces the decoder.
    """

    def __init__(self, causal: PreTrainedModel, device: torch.device | None = None) -> None:
        """Take the head of `causal`, and move it to `device` if that is given."""
        self._causal = copy.copy(causal)
        self._causal._modules = {**causal._modules, causal.base_model_prefix: _Given()}
        nn.Module.to(self._causal, device=device)
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
        """Return this module: OPT's causal model calls the `decoder` of its base model."""
        return self


@dataclass
class _States(ModelOutput):
    """A decoder's output. Any other field that a family reads (caches, router logits) is None."""

    last_hidden_state: torch.Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)
