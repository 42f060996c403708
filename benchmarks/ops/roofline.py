"""What a device can do at most, measured, and what a kernel must do at least, counted.

Useful bytes: each input read once, each output written once. Useful FLOPs of attention: two products of 2·L²·D a head
and sequence forward; five in the backward pass, which must compute the scores again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.ops.shapes import Direction
from benchmarks.ops.timing import copies_beyond_cache, measure

MATRIX_SIZE = 8192
COPY_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Measured on this device."""

    copy: float  # bytes a second, those read and those written
    matrix: float  # FLOP a second of a bf16 product of 8192 × 8192 × 8192 random numbers

    def __str__(self) -> str:
        return f"ceilings, measured: copy {self.copy / 1e12:.2f} TB/s, matrix product {self.matrix / 1e12:.0f} TFLOP/s"


def measure_ceilings() -> Ceilings:
    return Ceilings(copy=_copy_rate(), matrix=product_rate())


def _copy_rate() -> float:
    source = torch.randint(0, 255, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / measure(lambda _: target.copy_(source), [None]).median


def product_rate(dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP a second of a square product on this GPU."""
    a, b = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * MATRIX_SIZE**3 / measure(lambda _: a @ b, [None], seconds=0.5).median


def attention_flops(lengths: Sequence[int], heads: int, head_dim: int, *, backward: bool = False) -> float:
    forward = 4 * sum(length**2 for length in lengths) * head_dim * heads
    return 2.5 * forward if backward else forward


def attention_bytes(tokens: int, heads: int, kv_heads: int, head_dim: int, *, backward: bool = False) -> int:
    """bf16: forward reads q, k, v and writes o; backward reads these and dO, and writes dq, dk and dv."""
    query, key = tokens * heads * head_dim * 2, tokens * kv_heads * head_dim * 2
    return 4 * query + 4 * key if backward else 2 * query + 2 * key


def tensor_bytes(*tensors: torch.Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def cache_bytes() -> int:
    return torch.cuda.get_device_properties("cuda").L2_cache_size


def sets_of_inputs(*one: torch.Tensor) -> int:
    """How many copies of these inputs a measurement takes turns over."""
    return copies_beyond_cache(tensor_bytes(*one), cache_bytes())


def bytes_of_rms_norm(tokens: int, width: int, size: int, *, add: bool) -> dict[Direction, int]:
    """Forward x, y; with the add x, residual, y, total. Backward x, dy, dx; total, dy, dtotal, and one gradient."""
    states = tokens * width * size
    return {"forward": (4 if add else 2) * states, "backward": (4 if add else 3) * states}


def bytes_of_dropout(tokens: int, width: int, size: int) -> dict[Direction, int]:
    """Forward x, y; backward dy, dx."""
    return {"forward": 2 * tokens * width * size, "backward": 2 * tokens * width * size}


def bytes_of_quantize(tokens: int, width: int, size: int) -> dict[Direction, int]:
    """Forward x, a byte of each number, and a float32 scale a row."""
    return {"forward": tokens * (width * size + width + 4)}


def bytes_of_swiglu(tokens: int, width: int, size: int) -> dict[Direction, int]:
    """Forward gate_up, y; backward gate_up, dy, d(gate_up); a half of gate_up is `width` wide."""
    states = tokens * width * size
    return {"forward": 3 * states, "backward": 5 * states}


def bytes_of_rope(
    tokens: int, heads: int, kv_heads: int, head_dim: int, size: int, *, variant: str
) -> dict[Direction, int]:
    """Forward q and k both ways, and v where a bias is added to it; backward dq, dk, dv, d(qkv), and q and k again
    where they were normalised. cos and sin once."""
    head = tokens * head_dim * size
    turned, turns = (heads + kv_heads) * head, head  # cos and sin are half a head wide
    values = 2 * kv_heads * head
    forward = 2 * turned + turns + (values if variant == "bias" else 0)
    return {"forward": forward, "backward": 2 * turned + turns + values + (turned if variant == "norm" else 0)}


def bytes_of_pool(lengths: Sequence[int], width: int, size: int, *, mode: str) -> dict[Direction, int]:
    """Forward hidden and residual of the pooled tokens, and a float32 vector each; backward these again, and one
    gradient of every token."""
    vectors = len(lengths) * width * 4
    states = sum(lengths) * width * size
    pooled = len(lengths) * width * size if mode in ("last", "first") else states
    return {"forward": 2 * pooled + vectors, "backward": 2 * pooled + vectors + states}
