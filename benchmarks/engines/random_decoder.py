"""Decoders with random weights, drawn on the device, for benchmarks of the forward pass alone.

Speed depends on the shape of a model, not on the values of its weights, so no checkpoint is read or written. The model
is one of transformers, bidirectional; the fused decoder is built from the same weights and shares them with it.

Shapes: n texts, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, LlamaConfig, Qwen3Config

from benchmarks.engines.models import INIT, MODEL_SHAPES, ModelShape
from fastvec.decoders.from_files import PlainDecoder, Shape
from fastvec.decoders.fused import FusedDecoder
from fastvec.decoders.kernel_check import call_kernels, kernel_check
from fastvec.decoders.quantized import quantized
from fastvec.texts.packing import Packed
from fastvec_kernels import pool

IntArray = npt.NDArray[np.integer]

EPS, THETA = 1e-6, 1e6  # of Qwen3
NORM_SPREAD = 0.1  # of the norms' weights around 1, so that leaving one out changes the vectors
DTYPES = {"cuda": "bfloat16", "cpu": "float32"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomDecoder:
    """A family of decoders and a size. A layer of qwen3 normalizes queries and keys, one of llama does not."""

    family: Literal["llama", "qwen3"]
    sizes: ModelShape
    vocabulary: int


DECODERS = {
    "tiny": RandomDecoder(
        family="qwen3",
        sizes=ModelShape(hidden=64, intermediate=192, layers=2, heads=4, kv_heads=2, head=32),
        vocabulary=1000,
    ),
    "25M": RandomDecoder(family="llama", sizes=MODEL_SHAPES["25M"], vocabulary=32_000),
    "0.6B": RandomDecoder(family="qwen3", sizes=MODEL_SHAPES["0.6B"], vocabulary=151_936),
    "1.7B": RandomDecoder(family="qwen3", sizes=MODEL_SHAPES["1.7B"], vocabulary=151_936),
    "8B": RandomDecoder(
        family="llama",
        # of Llama 3.1 8B; MODEL_SHAPES["8B"] has the sizes of Qwen3-8B
        sizes=ModelShape(hidden=4096, intermediate=14336, layers=32, heads=32, kv_heads=8, head=128),
        vocabulary=128_256,
    ),
}


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def random_model(decoder: RandomDecoder, *, positions: int, dtype: str, device: str) -> Any:
    """Return a bidirectional model of transformers with random weights, for texts of up to `positions` tokens."""
    make: Any = Qwen3Config if decoder.family == "qwen3" else LlamaConfig
    config = make(
        vocab_size=decoder.vocabulary,
        **decoder.sizes.config,
        max_position_embeddings=positions,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        initializer_range=INIT,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    config.is_causal, config.use_bidirectional_attention = False, True
    torch.manual_seed(0)
    with torch.device(device):  # transformers draws the weights here, and computes the rotary frequencies
        model = AutoModel.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.normal_(1, NORM_SPREAD)
    return model.requires_grad_(False).eval()


def fused_decoder(decoder: RandomDecoder, model: Any, *, positions: int, device: str) -> FusedDecoder:
    """Return the fused path over the weights of `model`, which it shares.

    Kernels that fail are replaced by PyTorch's operations, as when `fastvec.forward` loads a model.
    """
    shape = Shape.of(model.config.to_diff_dict())  # what its config.json would have
    with kernel_check():
        fused = PlainDecoder(model, shape, bidirectional=True, positions=positions).fuse()
        call_kernels(partial(fused_vectors, fused), decoder.vocabulary, positions, device)
    return fused


def fp8_decoder(decoder: RandomDecoder, fused: FusedDecoder, *, positions: int, device: str) -> FusedDecoder:
    """Return a fused path with fp8 products, its kernels checked like those of `fused_decoder`."""
    with kernel_check():
        fused = quantized(fused, "fp8", 8)
        call_kernels(partial(fused_vectors, fused), decoder.vocabulary, positions, device)
    return fused


def fused_vectors(fused: FusedDecoder, packed: Packed) -> torch.Tensor:
    """Return the vectors [n, D] as `fastvec.forward` does: mean of all tokens, normalized, in float32."""
    hidden, residual = fused(packed)
    norm = fused.norm
    return pool(hidden, packed.spans, "mean", residual=residual, weight=norm.weight, eps=norm.eps, normalize=True)


def random_texts(lengths: Sequence[int], vocabulary: int) -> list[IntArray]:
    """Return the token ids of one text for each length, the same every time."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, vocabulary, length) for length in lengths]
