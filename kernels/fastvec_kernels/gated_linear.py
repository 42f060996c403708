"""The gate-up product of a feed-forward layer with its gated unit: y = f(x · W_gateᵀ) · (x · W_upᵀ), for inference.

A program computes a tile of gate and the tile of up beside it, so that the product [T, 2F] is not written to memory and
the pass of `swiglu`, 6 F bytes a token in half precision, is gone. This pays if the kernel's products are fast enough:
at r FLOP/s instead of the library's R they take 4 D F T (1 / r − 1 / R) seconds more, and the pass took 6 F T /
bandwidth. With 620 TFLOP/s and 2.6 TB/s, r must be above 0.74 R at D = 1,024, and above 0.92 R at D = 4,096.

Shapes: T packed tokens, D hidden size, F feed-forward size; weight [2F, D] contains W_gate, then W_up.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from fastvec_kernels._launch import architecture, ceil_div, launch, records_gradient, tl, triton
from fastvec_kernels._switch import op, uses_kernel
from fastvec_kernels.quantize import rows_of
from fastvec_kernels.swiglu import Activation, activate, gated, gated_reference


class Tile(NamedTuple):
    """Tile of a program, and its compile options."""

    rows: int
    cols: int  # of gate, and as many of up
    depth: int  # of D in a step; divides D
    warps: int
    stages: int


GROUP = 8  # tiles of rows that neighbouring programs work on, so that they find W in the L2 cache
# Candidates, best first. All compile without spilling, and overlap the products of one step with the loads of others.
TILES: dict[str, tuple[Tile, ...]] = {
    "sm_90": (Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 4), Tile(128, 64, 64, 4, 4), Tile(256, 64, 64, 8, 3)),
}
# The widest D for which the kernel runs, by architecture. It has not been measured yet, so it runs for none:
# `python -m benchmarks.kernels gated_linear` compares the candidates with the product and the unit one after the other.
WIDEST: dict[str, int] = {}


def gated_linear_reference(x: torch.Tensor, weight: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Reference implementation, in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return gated_reference(F.linear(x.to(wide), weight.to(wide)), activation).to(x.dtype)


def gated_linear(x: torch.Tensor, weight: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Return f(gate) · up of the product x · weightᵀ, `x` [T, D] and `weight` [2F, D] -> [T, F].

    `activation` is silu, gelu_tanh or gelu. The kernel records no gradient; if one is needed, the product and the unit
    run one after the other. Raises ValueError if the shapes do not fit together.
    """
    if x.ndim != 2 or weight.ndim != 2 or len(weight) % 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"gated_linear needs x [T, D] and weight [2F, D], got {tuple(x.shape)}, {tuple(weight.shape)}")
    if not _fits(x, weight):
        return gated(F.linear(x, weight), activation)
    return gated_product(x, weight, activation, TILES[str(architecture(x.device))][0])


def _fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    if not WIDEST or not uses_kernel("gated_linear", x) or not len(x):
        return False
    if torch.compiler.is_compiling() or records_gradient(x, weight):
        return False
    target, depth = architecture(x.device), x.shape[1]
    return (
        x.dtype == weight.dtype
        and x.itemsize == 2
        and depth <= WIDEST.get(str(target), 0)
        and depth % TILES[str(target)][0].depth == 0
    )


def _checked_reference(x: torch.Tensor, weight: torch.Tensor, activation: Activation, tile: Tile) -> torch.Tensor:
    return gated_linear_reference(x, weight, activation)


@op("gated_linear", _checked_reference)
def gated_product(x: torch.Tensor, weight: torch.Tensor, activation: Activation, tile: Tile) -> torch.Tensor:
    """Compute `gated_linear` by the kernel. `x` and `weight` are of one dtype, and tile.depth divides D."""
    x, weight = rows_of(x), rows_of(weight)
    T, width = len(x), len(weight) // 2
    y = x.new_empty(T, width)
    grid = (ceil_div(T, tile.rows) * ceil_div(width, tile.cols),)
    launch(
        _gated_linear_kernel, grid, x, weight, y, x.stride(0), weight.stride(0), T, x.shape[1],
        F=width, ACTIVATION=activation, ROWS=tile.rows, COLS=tile.cols, DEPTH=tile.depth, GROUP=GROUP,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


@triton.jit(do_not_specialize=["T", "D"])  # with D as a constant, the compiler unrolls a short loop, and spills
def _gated_linear_kernel(
    x_ptr, weight_ptr, y_ptr, x_stride, weight_stride, T, D,
    F: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    of_group = GROUP * tl.cdiv(F, COLS)
    first, within = tl.program_id(0) // of_group * GROUP, tl.program_id(0) % of_group
    tiles = tl.minimum(tl.cdiv(T, ROWS) - first, GROUP)
    row = (first + within % tiles) * ROWS + tl.arange(0, ROWS)
    col = within // tiles * COLS + tl.arange(0, COLS)
    depth = tl.arange(0, DEPTH)[None, :]
    # rows and columns after the end repeat the last one, so that the loop needs no mask; T · D may exceed 2^31
    x_place = x_ptr + tl.minimum(row, T - 1).to(tl.int64)[:, None] * x_stride + depth
    gate_place = weight_ptr + tl.minimum(col, F - 1)[:, None] * weight_stride + depth
    up_place = gate_place + F * weight_stride
    gate = tl.zeros([ROWS, COLS], tl.float32)
    up = tl.zeros([ROWS, COLS], tl.float32)
    for _ in tl.range(0, D, DEPTH):
        x = tl.load(x_place)
        gate = tl.dot(x, tl.load(gate_place).T, gate)
        up = tl.dot(x, tl.load(up_place).T, up)
        x_place += DEPTH
        gate_place += DEPTH
        up_place += DEPTH
    p, _ = activate(gate, ACTIVATION)
    place = y_ptr + row.to(tl.int64)[:, None] * F + col[None, :]
    tl.store(place, gate * p * up, mask=(row < T)[:, None] & (col < F)[None, :])
