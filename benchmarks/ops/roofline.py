"""The roofline: measures the peak rates of a device, and counts the bytes and FLOPs that an op cannot avoid.

Useful bytes: each input is read once and each output written once. Useful FLOPs of attention, per head and sequence of
length L: two products of 2·L²·D in the forward pass, and five in the backward pass, which must recompute the scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.ops.timing import copies_beyond_cache, measure
from fastvec_kernels._accuracy import Direction

MATRIX_SIZE = 8192
COPY_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Peak rates measured on this device."""

    copy: float  # bytes/s, the sum of bytes read and bytes written
    matrix: float  # FLOP/s of a bf16 product of two random matrices, 8192 × 8192 each

    def __str__(self) -> str:
        return f"measured ceilings: copy {self.copy / 1e12:.2f} TB/s, matrix product {self.matrix / 1e12:.0f} TFLOP/s"


def measure_ceilings() -> Ceilings:
    return Ceilings(copy=_copy_rate(), matrix=product_rate())


def _copy_rate() -> float:
    source = torch.randint(0, 255, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / measure(lambda _: target.copy_(source), [None]).median


def product_rate(dtype: torch.dtype = torch.bfloat16) -> float:
    """Return the FLOP/s of a square matrix product on this GPU."""
    a, b = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * MATRIX_SIZE**3 / measure(lambda _: a @ b, [None], seconds=0.5).median


def attention_flops(lengths: Sequence[int], heads: int, head_dim: int, *, backward: bool = False) -> float:
    forward = 4 * sum(length**2 for length in lengths) * head_dim * heads
    return 2.5 * forward if backward else forward


def attention_bytes(tokens: int, heads: int, kv_heads: int, head_dim: int, *, backward: bool = False) -> int:
    """Count bf16 bytes: forward reads q, k, v and writes o; backward reads these and dO, and writes dq, dk, dv."""
    query, key = tokens * heads * head_dim * 2, tokens * kv_heads * head_dim * 2
    return 4 * query + 4 * key if backward else 2 * query + 2 * key


def tensor_bytes(*tensors: torch.Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def cache_bytes() -> int:
    return torch.cuda.get_device_properties("cuda").L2_cache_size


def sets_of_inputs(*one: torch.Tensor) -> int:
    """Return how many sets of these inputs a measurement alternates between, to miss the L2 cache."""
    return copies_beyond_cache(tensor_bytes(*one), cache_bytes())


def bytes_of_rms_norm(tokens: int, width: int, size: int, *, add: bool) -> dict[Direction, int]:
    """Count x and y forward; x, dy and dx backward.

    With `add`: x, residual, y and total forward; total, dy, dtotal and one gradient backward.
    """
    states = tokens * width * size
    return {"forward": (4 if add else 2) * states, "backward": (4 if add else 3) * states}


def bytes_of_dropout(tokens: int, width: int, size: int) -> dict[Direction, int]:
    """Count x and y forward; dy and dx backward."""
    return {"forward": 2 * tokens * width * size, "backward": 2 * tokens * width * size}


def bytes_of_quantize(tokens: int, width: int, size: int) -> dict[Direction, int]:
    """Count x, one byte per number of the result, and one float32 scale per row. There is no backward."""
    return {"forward": tokens * (width * size + width + 4)}


def bytes_of_swiglu(tokens: int, width: int, size: int) -> dict[Direction, int]:
    """Count gate_up and y forward; gate_up, dy and d(gate_up) backward. `width` is half the width of gate_up."""
    states = tokens * width * size
    return {"forward": 3 * states, "backward": 5 * states}


def bytes_of_rope(
    tokens: int, heads: int, kv_heads: int, head_dim: int, size: int, *, variant: str
) -> dict[Direction, int]:
    """Count q, k, cos and sin: q and k read and written, and v too with a bias.

    Backward counts dq, dk, dv, d(qkv), cos, sin and, with a norm, q and k again.
    """
    head = tokens * head_dim * size
    turned, turns = (heads + kv_heads) * head, head  # cos and sin are half a head wide each
    values = 2 * kv_heads * head
    forward = 2 * turned + turns + (values if variant == "bias" else 0)
    return {"forward": forward, "backward": 2 * turned + turns + values + (turned if variant == "norm" else 0)}


def bytes_of_pool(lengths: Sequence[int], width: int, size: int, *, mode: str) -> dict[Direction, int]:
    """Count hidden and residual of the pooled tokens, and a float32 vector per text.

    Backward counts the same, and one gradient for every token.
    """
    vectors = len(lengths) * width * 4
    states = sum(lengths) * width * size
    pooled = len(lengths) * width * size if mode in ("last", "first") else states
    return {"forward": 2 * pooled + vectors, "backward": 2 * pooled + vectors + states}
