"""Whole decoders on the Triton kernels, on a GPU or in Triton's interpreter, compared with PyTorch's operations."""

from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from itertools import product

import numpy as np
import pytest
import torch

from fastvec.decoders.detection import fuse
from fastvec.decoders.packed_transformers import Decoder
from fastvec.texts.packing import Packed, pack
from fastvec_kernels import checked_kernels
from fastvec_kernels._accuracy import compare
from fastvec_kernels._launch import kernels_on_cpu
from tests.helpers.tiny_families import VOCABULARY, tiny_model

GPU = torch.cuda.is_available()
# every rule of the kernels: grouped heads, head norms, biases, windows, softcaps, sinks, norms after a sublayer, GEGLU
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "mistral", "granite", "gpt_oss")
# what `make test` runs without a GPU, where each takes seconds: biases, and sinks with windows
INTERPRETED = {("qwen2", True), ("gpt_oss", False)}
LENGTHS = (17, 1, 9, 33, 2) if not GPU else (17, 1, 9, 9, 2, 100, 70)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def packed(device: str, lengths: tuple[int, ...] = LENGTHS) -> Packed:
    random = np.random.default_rng(0)
    return pack([random.integers(0, VOCABULARY, length).astype(np.int32) for length in lengths], device=device)


@pytest.mark.parametrize(
    ("family", "bidirectional"),
    [
        pytest.param(*case, marks=[] if GPU or case in INTERPRETED else pytest.mark.slow)
        for case in product(FAMILIES, (True, False))
    ],
)
def test_a_decoder_on_kernels_has_the_states_of_pytorchs_operations(family: str, bidirectional: bool) -> None:
    decoder = Decoder(tiny_model(family), bidirectional=bidirectional)
    expected = decoder(packed("cpu"))
    device = "cuda" if GPU else "cpu"
    decoder.model.to(torch.device(device))  # type: ignore[arg-type]
    run = fuse(decoder, 128)
    with nullcontext() if GPU else kernels_on_cpu(), checked_kernels() as failures:
        (decoder if run is None else run.states)(packed(device))
    assert failures == {}
    with nullcontext() if GPU else kernels_on_cpu():
        found = (decoder if run is None else run.states)(packed(device)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", [pytest.param("qwen2", marks=pytest.mark.slow), "qwen3"])  # biases, head norms
def test_short_sequences_in_half_precision_take_one_kernel(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = tiny_model(family, torch.float16, **heads, max_position_embeddings=256)
    device = "cuda" if GPU else "cpu"
    decoder = Decoder(model, bidirectional=True)
    decoder.model.to(torch.device(device))  # type: ignore[arg-type]
    run = fuse(decoder, 256)
    assert run is not None
    with nullcontext() if GPU else kernels_on_cpu():
        one_after_the_other = run.states(packed(device, (*LENGTHS, 129)))[: sum(LENGTHS)]
        # from here on, neither of the two ops that the kernel replaces can run
        monkeypatch.setattr(import_module("fastvec_kernels.rope_attention"), "rope", None)
        found = run.states(packed(device, LENGTHS))
    assert compare((found,), (one_after_the_other.float(),))[1] is None
