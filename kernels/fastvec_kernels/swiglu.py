"""Gated linear units of the feed-forward layer: y = f(gate) · up, computed directly from the fused gate-up product.

    f(g) = g · sigmoid(g)                                swiglu
         = g · sigmoid(2 √(2/π) (g + 0.044715 g³))       geglu, "tanh": ½ g (1 + tanh(…)) without cancellation
         = g · ½ (1 + erf(g / √2))                       geglu, "none"

    dgate = dy · up · f'(gate), dup = dy · f(gate)

Shapes: T packed tokens, F feed-forward size; gate_up [T, 2F] contains gate, then up.
The kernels compute in fp32 whatever the dtype and round once, at the store. Without a GPU, activation and product are
two PyTorch operations, as in a plain model: this takes less than half the time of fp32 copies.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F

from fastvec_kernels._launch import call, ceil_div, launch, next_power_of_2, operator, tl, triton
from fastvec_kernels._switch import op, uses_kernel
from fastvec_kernels.quantize import (
    FP8_CONSTANTS,
    Fp8Rows,
    empty_fp8,
    makes_fp8,
    quantize_rows,
    quantize_rows_reference,
    row_tile,
    rows_of,
    to_fp8,
)

Approximate = Literal["tanh", "none"]  # of PyTorch's gelu
Activation = Literal["silu", "gelu_tanh", "gelu"]


def swiglu_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """Reference implementation, in float32 or wider."""
    gate, up = _halves(gate_up)
    return (F.silu(gate) * up).to(gate_up.dtype)


def geglu_reference(gate_up: torch.Tensor, *, approximate: Approximate = "tanh") -> torch.Tensor:
    """Reference implementation, in float32 or wider."""
    gate, up = _halves(gate_up)
    return (F.gelu(gate, approximate=approximate) * up).to(gate_up.dtype)


@op("swiglu", swiglu_reference)
def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) · up of `gate_up` [T, 2F] -> [T, F] of its dtype. Raises ValueError for another shape."""
    _check("swiglu", gate_up)
    if gate_up.numel() == 0 or not uses_kernel("swiglu", gate_up):
        gate, up = gate_up.chunk(2, 1)
        return F.silu(gate) * up
    y: torch.Tensor = call(_gated, gate_up, "silu")
    return y


@op("swiglu", geglu_reference)
def geglu(gate_up: torch.Tensor, *, approximate: Approximate = "tanh") -> torch.Tensor:
    """Return gelu(gate) · up of `gate_up` [T, 2F] -> [T, F] of its dtype.

    `approximate` is that of torch.nn.functional.gelu. Raises ValueError for another shape or another approximation.
    """
    _check("geglu", gate_up)
    if approximate not in get_args(Approximate):
        raise ValueError(
            f"geglu needs approximate to be one of {', '.join(get_args(Approximate))}, got {approximate!r}"
        )
    if gate_up.numel() == 0 or not uses_kernel("swiglu", gate_up):
        gate, up = gate_up.chunk(2, 1)
        return F.gelu(gate, approximate=approximate) * up
    y: torch.Tensor = call(_gated, gate_up, "gelu_tanh" if approximate == "tanh" else "gelu")
    return y


def gated(gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Return `swiglu` or `geglu`, by the name of the activation."""
    if activation == "silu":
        return swiglu(gate_up)
    return geglu(gate_up, approximate="tanh" if activation == "gelu_tanh" else "none")


def gated_reference(gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Reference implementation of `gated`."""
    if activation == "silu":
        return swiglu_reference(gate_up)
    return geglu_reference(gate_up, approximate="tanh" if activation == "gelu_tanh" else "none")


def gated_fp8(gate_up: torch.Tensor, activation: Activation) -> Fp8Rows:
    """Compute `gated` and quantize its rows, in the kernel without rounding in between; for inference.

    In bfloat16 this moves 5 bytes an element of the result, `gated` and `quantize_rows` 9.
    """
    _check("gated_fp8", gate_up)
    if not makes_fp8("swiglu", gate_up, gate_up.shape[1] // 2):
        return quantize_rows(gated(gate_up, activation))
    return _gated_fp8(gate_up, activation)


def _gated_fp8_reference(gate_up: torch.Tensor, activation: Activation) -> Fp8Rows:
    return quantize_rows_reference(gated_reference(gate_up.float(), activation))


@op("swiglu", _gated_fp8_reference)
def _gated_fp8(gate_up: torch.Tensor, activation: Activation) -> Fp8Rows:
    gate_up = rows_of(gate_up)
    T, width = gate_up.shape[0], gate_up.shape[1] // 2
    found = empty_fp8(gate_up, width)
    rows, block_f, warps = row_tile(width)
    sizes = {"F": width, "ROWS": rows, "BLOCK_F": block_f, "ACTIVATION": activation, **FP8_CONSTANTS}
    launch(_gated_fp8_kernel, (ceil_div(T, rows),), gate_up, *found, gate_up.stride(0), T, **sizes, num_warps=warps)
    return found


def _check(name: str, gate_up: torch.Tensor) -> None:
    if gate_up.ndim != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"{name} needs gate_up [T, 2F], got {tuple(gate_up.shape)}")


def _halves(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(gate_up.dtype, torch.float32)  # float64 stays float64, for gradcheck
    gate, up = gate_up.to(wide).chunk(2, 1)
    return gate, up


def tile(width: int) -> tuple[int, int]:
    """Return (rows, block_f) of a program of 4 warps: 2048 elements, 16 per thread.

    A thread thus makes two 16-byte loads each of gate and up. The maximum of 1024 columns divides most feed-forward
    sizes (3072, 8192, 14336) and wastes little of the others.
    """
    block_f = min(next_power_of_2(width), 1024)
    return 2048 // block_f, block_f


@operator("fastvec::gated")
def _gated(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    gate_up = rows_of(gate_up)
    T, width = gate_up.shape[0], gate_up.shape[1] // 2
    y = gate_up.new_empty(T, width)
    rows, block_f = tile(width)
    grid = (ceil_div(T, rows) * ceil_div(width, block_f),)
    sizes = {"F": width, "ROWS": rows, "BLOCK_F": block_f, "ACTIVATION": activation}
    launch(_gated_kernel, grid, gate_up, y, gate_up.stride(0), T, **sizes, num_warps=4)
    return y


@torch.library.custom_op("fastvec::gated_backward", mutates_args=())
def _gated_backward(dy: torch.Tensor, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    dy, gate_up = rows_of(dy), rows_of(gate_up)
    T, width = dy.shape
    dgate_up = gate_up.new_empty(T, 2 * width)
    rows, block_f = tile(width)
    grid = (ceil_div(T, rows) * ceil_div(width, block_f),)
    sizes = {"F": width, "ROWS": rows, "BLOCK_F": block_f, "ACTIVATION": activation}
    strides = (dy.stride(0), gate_up.stride(0))
    launch(_gated_backward_kernel, grid, dy, gate_up, dgate_up, *strides, T, **sizes, num_warps=4)
    return dgate_up


@_gated.register_fake
def _(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


@_gated_backward.register_fake
def _(dy: torch.Tensor, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    return gate_up.new_empty(gate_up.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    gate_up, ctx.activation = inputs
    ctx.save_for_backward(gate_up)


def _gradient(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
    return _gated_backward(dy, *ctx.saved_tensors, ctx.activation), None


_gated.register_autograd(_gradient, setup_context=_save)


@triton.jit
def activate(gate, ACTIVATION: tl.constexpr):
    """Return p of f(gate) = gate · p, and dz: with p = sigmoid(z) the derivative of z, with erf that of p."""
    if ACTIVATION == "silu":
        p = 1.0 / (1.0 + tl.exp2(-1.4426950408889634 * gate))  # log2 e
        dz = 1.0
    elif ACTIVATION == "gelu_tanh":
        z = 1.5957691216057308 * gate * (1.0 + 0.044715 * gate * gate)  # 2 √(2/π)
        p = 1.0 / (1.0 + tl.exp2(-1.4426950408889634 * z))
        dz = 1.5957691216057308 * (1.0 + 0.134145 * gate * gate)
    else:
        p = 0.5 + 0.5 * tl.math.erf(gate * 0.7071067811865476)
        dz = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * gate * gate)  # 1 / √(2π), ½ log2 e
    return p, dz


@triton.jit
def _place(T, F: tl.constexpr, ROWS: tl.constexpr, BLOCK_F: tl.constexpr):
    """Return rows, columns and the mask of a program; consecutive programs advance along a row first."""
    BLOCKS: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    rows = (tl.program_id(0) // BLOCKS * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)  # T · 2F may exceed 2^31
    cols = tl.program_id(0) % BLOCKS * BLOCK_F + tl.arange(0, BLOCK_F)[None, :]
    return rows, cols, (rows < T) & (cols < F)


@triton.jit(do_not_specialize=["T"])
def _gated_kernel(
    gate_up_ptr, y_ptr, stride, T,
    F: tl.constexpr, ROWS: tl.constexpr, BLOCK_F: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    rows, cols, inside = _place(T, F, ROWS, BLOCK_F)
    gate = tl.load(gate_up_ptr + rows * stride + cols, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + rows * stride + F + cols, mask=inside, other=0.0).to(tl.float32)
    p, _ = activate(gate, ACTIVATION)
    tl.store(y_ptr + rows * F + cols, gate * p * up, mask=inside)


@triton.jit(do_not_specialize=["T"])
def _gated_fp8_kernel(
    gate_up_ptr, y_ptr, scales_ptr, stride, T,
    F: tl.constexpr, ROWS: tl.constexpr, BLOCK_F: tl.constexpr, ACTIVATION: tl.constexpr,
    LARGEST: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)  # T · 2F may exceed 2^31
    cols = tl.arange(0, BLOCK_F)[None, :]
    inside = (rows < T) & (cols < F)
    gate = tl.load(gate_up_ptr + rows * stride + cols, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + rows * stride + F + cols, mask=inside, other=0.0).to(tl.float32)
    p, _ = activate(gate, ACTIVATION)
    y, scale = to_fp8(gate * p * up, LARGEST, LEAST)
    tl.store(scales_ptr + rows, scale, mask=rows < T)
    tl.store(y_ptr + rows * F + cols, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T"])
def _gated_backward_kernel(
    dy_ptr, gate_up_ptr, dgate_up_ptr, dy_stride, stride, T,
    F: tl.constexpr, ROWS: tl.constexpr, BLOCK_F: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    rows, cols, inside = _place(T, F, ROWS, BLOCK_F)
    gate = tl.load(gate_up_ptr + rows * stride + cols, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + rows * stride + F + cols, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + rows * dy_stride + cols, mask=inside, other=0.0).to(tl.float32)
    p, dz = activate(gate, ACTIVATION)
    dp = dz if ACTIVATION == "gelu" else p * (1.0 - p) * dz
    tl.store(dgate_up_ptr + rows * (2 * F) + cols, dy * up * (p + gate * dp), mask=inside)
    tl.store(dgate_up_ptr + rows * (2 * F) + F + cols, dy * gate * p, mask=inside)
