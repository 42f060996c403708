"""Feature dropout that depends only on the seed and the token: y_td = x_td / (1 − p) if kept, else 0.

A token is identified by the number of its sequence and its position in it. The same features are therefore dropped in
any batch, on any device and in every repetition of a forward pass, and the backward pass needs no stored mask.
`_random.py` generates the random bits.

Shapes: T tokens, D features.
"""

from typing import Any

import torch

from fastvec_kernels._launch import ceil_div, launch, next_power_of_2, tl, triton
from fastvec_kernels._random import drop_below, keeps_of_features, philox
from fastvec_kernels._switch import op, uses_kernel
from fastvec_kernels.quantize import rows_of

__all__ = ["dropout", "dropout_reference"]


def dropout_reference(x: torch.Tensor, tokens: torch.Tensor, *, p: float, seed: int) -> torch.Tensor:
    """Reference implementation: `x` [T, D] float, `tokens` [T, 2] int64."""
    sequence, place = tokens.unbind(1)
    first, second, _, _ = philox([sequence, place, place * 0, place * 0], seed)
    kept = keeps_of_features(first, second, x.shape[1], p)
    return x * (kept * (1 / (1 - p))).to(x.dtype)


@op("dropout", dropout_reference)
def dropout(x: torch.Tensor, tokens: torch.Tensor, *, p: float, seed: int) -> torch.Tensor:
    """Drop features of `x` [T, D] with probability `p`; `tokens` [T, 2] int64 are each row's sequence and position.

    Raises ValueError if shapes do not fit, `p` is not in [0, 1) or `seed` is not in [0, 2^63).
    """
    if x.ndim != 2 or tokens.shape != (len(x), 2):
        raise ValueError(f"dropout needs x [T, D] and tokens [T, 2], got {tuple(x.shape)} and {tuple(tokens.shape)}")
    if not 0 <= p < 1:
        raise ValueError(f"dropout needs a probability of at least 0 and below 1, got {p}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"dropout needs a seed from 0 to 2^63 - 1, got {seed}")
    if x.numel() == 0 or not uses_kernel("dropout", x):
        return dropout_reference(x, tokens, p=p, seed=seed)
    y: torch.Tensor = _dropout(x, tokens, p, seed)
    return y


def tile(width: int) -> tuple[int, int]:
    """Return (rows, block_d) of a program of 4 warps: 2048 elements, 16 per thread."""
    block_d = min(next_power_of_2(width), 1024)
    return 2048 // block_d, block_d


@torch.library.custom_op("fastvec::dropout", mutates_args=())
def _dropout(x: torch.Tensor, tokens: torch.Tensor, p: float, seed: int) -> torch.Tensor:
    x, tokens = rows_of(x), tokens.contiguous()
    T, width = x.shape
    y = x.new_empty(T, width)
    rows, block_d = tile(width)
    grid = (ceil_div(T, rows) * ceil_div(width, block_d),)
    numbers = (x.stride(0), T, seed, drop_below(p, bits=16), 1 / (1 - p))
    launch(_dropout_kernel, grid, x, tokens, y, *numbers, D=width, ROWS=rows, BLOCK_D=block_d, num_warps=4)
    return y


@_dropout.register_fake
def _(x: torch.Tensor, tokens: torch.Tensor, p: float, seed: int) -> torch.Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, tokens, ctx.p, ctx.seed = inputs
    ctx.save_for_backward(tokens)


def _gradient(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return _dropout(dy, *ctx.saved_tensors, ctx.p, ctx.seed), None, None, None  # the same random bits, the same scale


_dropout.register_autograd(_gradient, setup_context=_save)


@triton.jit(do_not_specialize=["T", "seed", "drop_below"])
def _dropout_kernel(
    x_ptr, tokens_ptr, y_ptr, stride, T, seed, drop_below, scale,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = (tl.program_id(0) // BLOCKS * ROWS + tl.arange(0, ROWS)).to(tl.int64)  # T · D may exceed 2^31
    sequence = tl.load(tokens_ptr + 2 * row, mask=row < T, other=0).to(tl.uint32)
    place = tl.load(tokens_ptr + 2 * row + 1, mask=row < T, other=0).to(tl.uint32)
    first, second, _, _ = tl.philox(seed, sequence, place, place * 0, place * 0)
    cols = tl.program_id(0) % BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    word = first[:, None] + (cols // 2).to(tl.uint32) * 0x9E3779B9
    word = (word ^ (word >> 16)) * 0x21F0AAAD
    word = word ^ second[:, None]
    word = (word ^ (word >> 15)) * 0x735A2D97
    word = word ^ (word >> 15)
    half = (word >> (cols % 2 * 16).to(tl.uint32)) & 0xFFFF
    inside = (row < T)[:, None] & (cols < D)
    x = tl.load(x_ptr + row[:, None] * stride + cols, mask=inside, other=0.0).to(tl.float32)
    y = tl.where(half.to(tl.int32) >= drop_below, x * scale, 0.0)
    tl.store(y_ptr + row[:, None] * D + cols, y, mask=inside)
