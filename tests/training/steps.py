"""Helpers for a training step without a Trainer: a tiny model, a `Pass`, and comparison of gradients."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fastvec.corpus.reader import Chunk
from fastvec.decoders.packed_transformers import Decoder, Noise, forward_packed
from fastvec.texts.packing import Packed
from fastvec.texts.tokenizer import TextRecipe, TextTokenizer


@dataclass
class PlainPass:
    """A `task.Pass` on the plain model, with only attention dropout; `forwards` lists the sequences per forward."""

    model: nn.Module
    seed: int = 5
    attention_dropout: float = 0.0
    forwards: list[int] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def forward(self, packed: Packed, numbers: Sequence[int]) -> torch.Tensor:
        self.forwards.append(len(packed.lengths))
        return forward_packed(
            self.model, packed, Noise(seed=self.seed, numbers=numbers, attention_dropout=self.attention_dropout)
        )

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()


def headed_model(folder: Path) -> PreTrainedModel:
    """Load the causal model in `folder` in float32, its decoder with fastvec's attention, bidirectional."""
    causal: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    Decoder(causal.model, bidirectional=True)
    return causal


def text_tokenizer(folder: Path, **recipe: object) -> TextTokenizer:
    return TextTokenizer(AutoTokenizer.from_pretrained(folder), TextRecipe(**recipe))  # type: ignore[arg-type]


def chunk_of(texts: Sequence[str | None], **columns: Sequence[str | None]) -> Chunk:
    kept = pa.RecordBatch.from_pydict({name: pa.array(values, pa.string()) for name, values in columns.items()})
    return Chunk(index=0, first_row=0, texts=pa.array(texts, pa.large_string()), kept=kept, repaired=0)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradients of a model's parameters and clear them."""
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Check each gradient to within `tolerance` times the largest entry of the expected one."""
    assert found.keys() == expected.keys()
    assert found
    for name, gradient in found.items():
        scale = expected[name].abs().max()
        torch.testing.assert_close(gradient / scale, expected[name] / scale, rtol=0, atol=tolerance, msg=name)
