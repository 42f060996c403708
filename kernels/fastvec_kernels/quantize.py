"""Row-wise FP8 quantization: each row is divided by its own scale and rounded to E4M3 (4 exponent, 3 mantissa bits).

    s_t = max_d |x_td| / 448, y_td = e4m3(x_td / s_t)

Each row has its own scale, so its result does not depend on the other rows. The kernel makes one pass over the rows,
PyTorch operations make three. `rms_norm` and `swiglu` have variants that return quantized rows at once.

Shapes: T rows, D their width.
"""

from typing import NamedTuple

import torch

from fastvec_kernels._launch import architecture, ceil_div, launch, next_power_of_2, tl, triton
from fastvec_kernels._switch import op, uses_kernel

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # the largest number of E4M3
LEAST = 1e-30  # lower bound of a row's maximum: a row of zeros needs a positive scale
FP8_CONSTANTS = {"LARGEST": LARGEST, "LEAST": LEAST}
WIDEST = 32_768  # a program holds whole rows: 32 warps with 32 elements per thread


class Fp8Rows(NamedTuple):
    """Quantized rows: a row of `values` times its entry of `scales` is near the numbers that were quantized."""

    values: torch.Tensor  # [T, D] E4M3
    scales: torch.Tensor  # [T] float32


def quantize_rows_reference(x: torch.Tensor) -> Fp8Rows:
    """Reference implementation, in float32."""
    wide = x.float()
    largest = wide.abs().amax(dim=1).clamp_min(LEAST)
    return Fp8Rows((wide * (LARGEST / largest)[:, None]).to(E4M3), largest / LARGEST)


@op("quantize_rows", quantize_rows_reference)
def quantize_rows(x: torch.Tensor) -> Fp8Rows:
    """Quantize `x` [T, D] -> E4M3 [T, D] and the float32 scales [T] that its rows were divided by.

    Raises ValueError if `x` is not two-dimensional or D is 0.
    """
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"quantize_rows needs x [T, D], got {tuple(x.shape)}")
    if not makes_fp8("quantize_rows", x, x.shape[1]):
        return quantize_rows_reference(x)
    x = rows_of(x)
    T, D = x.shape
    found = empty_fp8(x, D)
    rows, block_d, warps = row_tile(D)
    sizes = {"D": D, "ROWS": rows, "BLOCK_D": block_d, **FP8_CONSTANTS}
    launch(_quantize_kernel, (ceil_div(T, rows),), x, *found, x.stride(0), T, **sizes, num_warps=warps)
    return found


def makes_fp8(name: str, x: torch.Tensor, width: int) -> bool:
    """Return whether op `name` makes quantized rows of `width` from `x` in a kernel."""
    on_device = uses_kernel(name, x) and architecture(x.device) in ("sm_90", "sm_100")
    return on_device and x.numel() > 0 and width <= WIDEST


def empty_fp8(x: torch.Tensor, width: int) -> Fp8Rows:
    return Fp8Rows(x.new_empty(len(x), width, dtype=E4M3), x.new_empty(len(x), dtype=torch.float32))


def row_tile(width: int) -> tuple[int, int, int]:
    """Return (rows, columns, warps) of a program: 4096 elements or one longer row, 32 elements per thread."""
    block = next_power_of_2(width)
    rows = max(4096 // block, 1)
    return rows, block, rows * block // 1024


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """Return `x` if each row is contiguous, whatever the stride between rows, else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def to_fp8(y, LARGEST: tl.constexpr, LEAST: tl.constexpr):
    """Return a tile of whole rows divided by their scales, and the scales [rows, 1]."""
    largest = tl.maximum(tl.max(tl.abs(y), axis=1, keep_dims=True), LEAST)
    return y * (LARGEST / largest), largest / LARGEST


@triton.jit(do_not_specialize=["T"])
def _quantize_kernel(
    x_ptr, y_ptr, scales_ptr, stride, T,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, LARGEST: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)  # T · D may exceed 2^31
    cols = tl.arange(0, BLOCK_D)[None, :]
    inside = (row < T)[:, None] & (cols < D)
    x = tl.load(x_ptr + row[:, None] * stride + cols, mask=inside, other=0.0).to(tl.float32)
    y, scale = to_fp8(x, LARGEST, LEAST)
    tl.store(scales_ptr + row[:, None], scale, mask=(row < T)[:, None])
    tl.store(y_ptr + row[:, None] * D + cols, y.to(y_ptr.dtype.element_ty), mask=inside)
