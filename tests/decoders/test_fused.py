"""The fused path compared with transformers' own forward, for every family that it supports."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

from fastvec.decoders.detection import fuse
from fastvec.decoders.fused import FusedDecoder, Linear, floats
from fastvec.decoders.packed_transformers import Decoder
from fastvec.texts.packing import Packed, pack
from fastvec_kernels import Activation, Fp8Rows, rms_norm
from tests.helpers.tiny_families import VOCABULARY, tiny_model

FUSED = [
    "cwm",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "ministral",
    "mistral",
    "olmo2",
    "olmo3",
    "phi3",
    "qwen2",
    "qwen3",
    "seed_oss",
    "smollm3",
    "vaultgemma",
]
# not fused: they rotate by pairs, skip RoPE in some layers, scale queries by position, or have other norms or experts
OTHERS = [
    "ernie4_5",
    "exaone4",
    "gpt2",
    "glm",
    "gpt_neox",
    "ministral3",
    "mixtral",
    "nanochat",
    "stablelm",
    "starcoder2",
]
LENGTHS = (17, 1, 9, 9, 2, 30)  # most are longer than the window of 4


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.inference_mode():
        yield


def packed() -> Packed:
    random = np.random.default_rng(0)
    return pack([random.integers(0, VOCABULARY, length).astype(np.int32) for length in LENGTHS])


def states(fused: FusedDecoder) -> torch.Tensor:
    return fused.states(packed()).float()


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("family", FUSED)
def test_it_agrees_with_transformers(family: str, bidirectional: bool) -> None:
    decoder = Decoder(tiny_model(family), bidirectional=bidirectional)
    expected = decoder(packed())
    fused = fuse(decoder, 64)
    assert fused is not None
    torch.testing.assert_close(states(fused), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    # the decoder's result is unchanged although its weights are now views
    torch.testing.assert_close(decoder(packed()), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("family", FUSED)
def test_in_bfloat16_it_is_no_further_from_the_truth_than_transformers(family: str) -> None:
    truth = Decoder(tiny_model(family), bidirectional=True)(packed())
    narrow = Decoder(tiny_model(family, dtype=torch.bfloat16), bidirectional=True)
    theirs = (narrow(packed()).float() - truth).norm()
    fused = fuse(narrow, 64)
    assert fused is not None
    assert (states(fused) - truth).norm() < 1.25 * theirs  # both are rounding errors


@pytest.mark.parametrize(("choices", "found"), [((40, 34, 17), 34), ((40,), 68)])
def test_a_cpu_computes_feed_forward_layers_in_equal_parts(
    choices: tuple[int, ...], found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = fuse(Decoder(tiny_model("llama"), bidirectional=True), 64)
    assert fused is not None
    expected, gated, rows = states(fused), Linear.gated, []

    def recorded(self: Linear, x: torch.Tensor, activation: Activation) -> torch.Tensor:
        rows.append(len(x))
        return gated(self, x, activation)

    monkeypatch.setattr("fastvec.decoders.fused.CPU_ROWS", choices)
    monkeypatch.setattr(Linear, "gated", recorded)
    torch.testing.assert_close(states(fused), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert rows == [found] * (68 // found) * len(fused.layers)


@pytest.mark.parametrize("family", OTHERS)
def test_other_architectures_are_not_fused(family: str) -> None:
    decoder = Decoder(tiny_model(family), bidirectional=True)
    expected = decoder(packed())
    assert fuse(decoder, 64) is None
    torch.testing.assert_close(decoder(packed()), expected)


def test_queries_that_are_scaled_from_a_late_position_on_are_found_out() -> None:
    model = tiny_model("ministral3")
    ropes = model.config.rope_parameters | {"original_max_position_embeddings": 40}
    decoder = Decoder(tiny_model("ministral3", rope_parameters=ropes), bidirectional=True)
    assert fuse(decoder, 40) is not None
    assert fuse(decoder, 41) is None


def test_a_layer_that_computes_otherwise_than_it_looks_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Any = LlamaMLP.forward

    def larger(self: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = 1.001 * plain(self, x)
        return output

    monkeypatch.setattr(LlamaMLP, "forward", larger)
    for dtype in (torch.float32, torch.bfloat16):
        assert fuse(Decoder(tiny_model("llama", dtype=dtype), bidirectional=True), 64) is None


def test_the_weights_are_held_once() -> None:
    model: Any = tiny_model("qwen3")
    before = sum(parameter.numel() for parameter in model.parameters())
    assert fuse(Decoder(model, bidirectional=True), 64) is not None
    attention = model.layers[0].self_attn
    joined = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    assert len({weight.untyped_storage().data_ptr() for weight in joined}) == 1
    held = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in model.parameters()}
    assert sum(held.values()) == 4 * before


def test_positions_reach_as_far_as_was_asked_for() -> None:
    fused = fuse(Decoder(tiny_model("llama"), bidirectional=True), 30)
    assert fused is not None
    states(fused)
    short = fuse(Decoder(tiny_model("llama"), bidirectional=True), 29)
    assert short is not None
    with pytest.raises(IndexError):
        states(short)


def test_a_maximum_length_below_the_tried_ones_is_no_trouble() -> None:
    assert fuse(Decoder(tiny_model("gemma"), bidirectional=True), 1) is not None


def test_the_last_layer_computes_only_the_tokens_that_are_asked_for() -> None:
    decoder = Decoder(tiny_model("qwen3"), bidirectional=True)
    fused = fuse(decoder, 64)
    assert fused is not None
    rows: list[int] = []

    class Recorded:
        takes_fp8: ClassVar[bool] = False

        def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
            self.bias = bias
            self._linear = Linear(weight, bias)

        def product(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
            rows.append(len(floats(x)))
            return self._linear.product(x)

        def __call__(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
            rows.append(len(floats(x)))
            return self._linear(x)

    tokens = torch.tensor([16, 17, 67])
    x, residual = fused.with_linears(Recorded)(packed(), tokens)
    assert residual is not None
    found = rms_norm(x + residual, fused.norm.weight, fused.norm.eps)
    torch.testing.assert_close(found, fused.states(packed())[tokens], rtol=1e-5, atol=1e-5)
    assert rows == [*[68] * 13, 3, 3, 3]  # four layers of qkv, output, gate-up and down
