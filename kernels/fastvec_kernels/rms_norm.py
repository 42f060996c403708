"""RMSNorm over packed tokens, alone or after adding the residual.

    y = x / sqrt(mean(x²) + eps) · w                        rms_norm
    total = round(x + residual), y = rms_norm(total)        add_rms_norm

The norm is computed from the rounded sum: transformers does the same, the next layer reads this sum as its residual,
and it is the only activation that the backward pass needs. For Gemma, the caller passes 1 + w as w.
With g = dy · w and r = 1 / sqrt(mean(x²) + eps):

    dx = r · (g − x · r² · mean(g · x)) (+ dtotal) = dresidual          dw = Σ_t dy · x · r

Shapes: T packed tokens, D hidden size.
The kernels compute in fp32 whatever the dtypes and round once, at the store. A CPU does the same, in 0.5 to 0.7
of the time of F.rms_norm, which is called if a gradient is recorded.
"""

from typing import Any

import torch
import torch.nn.functional as F

from fastvec_kernels._launch import (
    call,
    ceil_div,
    launch,
    next_power_of_2,
    operator,
    records_gradient,
    tl,
    triton,
)
from fastvec_kernels._switch import op, uses_kernel
from fastvec_kernels.quantize import (
    FP8_CONSTANTS,
    WIDEST,
    Fp8Rows,
    empty_fp8,
    makes_fp8,
    quantize_rows,
    quantize_rows_reference,
    row_tile,
    rows_of,
    to_fp8,
)

GRADIENT_WARPS = 2048  # warps that share a weight's gradient: a wave of 16 per multiprocessor on 128 multiprocessors


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Reference implementation, in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)  # float64 stays float64, for gradcheck
    x_wide = x.to(wide)
    return (x_wide * torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide)).to(x.dtype)


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference implementation; PyTorch adds half-precision numbers in float32 and rounds once, as the kernel does."""
    total = x + residual
    return rms_norm_reference(total, weight, eps), total


@op("rms_norm", rms_norm_reference)
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalize each row of `x` [T, D] and scale it by `weight` [D] -> [T, D] of x's dtype.

    Raises ValueError if a shape does not fit.
    """
    if x.ndim != 2 or weight.shape != x.shape[1:]:
        raise ValueError(f"rms_norm needs x [T, D] and weight [D], got {tuple(x.shape)} and {tuple(weight.shape)}")
    if not _runs_kernel(x):
        return rms_norm_torch(x, weight, eps)
    y: torch.Tensor = call(_rms_norm, x, weight, eps)
    return y


@op("rms_norm", add_rms_norm_reference)
def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add `residual` [T, D] to `x` [T, D] and normalize the sum -> (y, total), both [T, D] of x's dtype.

    `total` is the next layer's residual. Raises ValueError if a shape or the residual's dtype does not fit.
    """
    if x.ndim != 2 or weight.shape != x.shape[1:]:
        raise ValueError(f"add_rms_norm needs x [T, D] and weight [D], got {tuple(x.shape)} and {tuple(weight.shape)}")
    if residual.shape != x.shape or residual.dtype != x.dtype:
        given = f"{tuple(residual.shape)} {residual.dtype}"
        raise ValueError(f"add_rms_norm needs a residual of x's {tuple(x.shape)} {x.dtype}, got {given}")
    if not _runs_kernel(x):
        total = x + residual
        return rms_norm_torch(total, weight, eps), total
    y, total = call(_add_rms_norm, x, residual, weight, eps)
    return y, total


def rms_norm_torch(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Compute `rms_norm` by F.rms_norm or, as that requires one dtype, for two dtypes by the reference.

    On a CPU and without a gradient, in fewer passes than either.
    """
    if x.device.type == "cpu" and x.dtype != torch.float64 and not records_gradient(x, weight):
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        inv_rms = norm.square_().div_(x.shape[1]).add_(eps).rsqrt_()
        y = wide * inv_rms if wide is x else wide.mul_(inv_rms)
        return y.mul_(weight.float()).to(x.dtype)
    if weight.dtype != x.dtype:
        return rms_norm_reference(x, weight, eps)
    return F.rms_norm(x, x.shape[1:], weight, eps)


def rms_norm_fp8_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> Fp8Rows:
    """Reference implementation of `rms_norm_fp8`."""
    return quantize_rows_reference(rms_norm_reference(x.float(), weight, eps))


def rms_norm_fp8(x: torch.Tensor, weight: torch.Tensor, eps: float) -> Fp8Rows:
    """Compute `rms_norm` and quantize its rows, in the kernel without rounding in between; for inference."""
    if not makes_fp8("rms_norm", x, x.shape[1]):
        return quantize_rows(rms_norm(x, weight, eps))
    return _rms_norm_fp8(x, weight, eps)


@op("rms_norm", rms_norm_fp8_reference)
def _rms_norm_fp8(x: torch.Tensor, weight: torch.Tensor, eps: float) -> Fp8Rows:
    found = empty_fp8(x, x.shape[1])
    _launch_forward(x, None, weight, eps, found)
    return found


def add_rms_norm_fp8_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reference implementation of `add_rms_norm_fp8`."""
    total = x + residual
    return (*rms_norm_fp8_reference(total, weight, eps), total)


def add_rms_norm_fp8(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `add_rms_norm` and quantize the normalized rows -> (values, scales, total); for inference.

    In bfloat16 this moves 7 bytes an element, `add_rms_norm` and `quantize_rows` 11.
    """
    if not makes_fp8("rms_norm", x, x.shape[1]):
        y, total = add_rms_norm(x, residual, weight, eps)
        return (*quantize_rows(y), total)
    return _add_rms_norm_fp8(x, residual, weight, eps)


@op("rms_norm", add_rms_norm_fp8_reference)
def _add_rms_norm_fp8(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = empty_fp8(x, x.shape[1])
    _, total = _launch_forward(x, residual, weight, eps, found)
    return (*found, total)


def _runs_kernel(x: torch.Tensor) -> bool:
    return x.numel() > 0 and x.shape[1] <= WIDEST and uses_kernel("rms_norm", x)


def backward_tile(D: int) -> tuple[int, int, int]:
    """Return (rows, block_d, warps) of a program: 2048 elements or one longer row of five tensors, 16 per thread."""
    block_d = next_power_of_2(D)
    rows = max(2048 // block_d, 1)
    return rows, block_d, min(rows * block_d // 512, 32)


def gradient_programs(row_blocks: int, warps: int) -> int:
    """Return the number of programs that sum a weight's gradient, each over at least 8 blocks of rows, in fp32.

    The number, and so the bits of the sum, is the same on every GPU.
    """
    return max(min(row_blocks // 8, GRADIENT_WARPS // warps), 1)


@operator("fastvec::rms_norm")
def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return _launch_forward(x, None, weight, eps)[0]


@operator("fastvec::add_rms_norm")
def _add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return _launch_forward(x, residual, weight, eps)


def _launch_forward(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, fp8: Fp8Rows | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y, in `fp8` if given, and the total."""
    x, weight = rows_of(x), weight.contiguous()
    T, D = x.shape
    y, scales = (x.new_empty(T, D), None) if fp8 is None else fp8
    total, total_ptr, residual_stride = x, None, 0
    if residual is not None:
        residual = rows_of(residual)
        total = total_ptr = x.new_empty(T, D)
        residual_stride = residual.stride(0)
    rows, block_d, warps = row_tile(D)
    pointers, strides = (x, residual, weight, y, total_ptr, scales), (x.stride(0), residual_stride)
    sizes = {"D": D, "ROWS": rows, "BLOCK_D": block_d, **FP8_CONSTANTS}
    launch(_rms_norm_kernel, (ceil_div(T, rows),), *pointers, *strides, eps, T, **sizes, num_warps=warps)
    return y, total


@torch.library.custom_op("fastvec::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, dtotal: torch.Tensor | None, eps: float, with_weight: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    dy, x, weight = rows_of(dy), rows_of(x), weight.contiguous()
    dtotal = None if dtotal is None else rows_of(dtotal)
    T, D = x.shape
    dx = x.new_empty(T, D)
    rows, block_d, warps = backward_tile(D)
    row_blocks = ceil_div(T, rows)
    programs = gradient_programs(row_blocks, warps) if with_weight else row_blocks
    partials = x.new_empty(programs if with_weight else 0, D, dtype=torch.float32)
    pointers = (dy, x, weight, dtotal, dx, partials if with_weight else None)
    strides = (dy.stride(0), x.stride(0), 0 if dtotal is None else dtotal.stride(0))
    sizes = {"D": D, "ROWS": rows, "BLOCK_D": block_d, "STAGES": 2 if with_weight else 1}
    launch(_rms_norm_backward_kernel, (programs,), *pointers, *strides, eps, T, **sizes, num_warps=warps)
    return dx, partials.sum(0).to(weight.dtype) if with_weight else weight.new_empty(0)


@_rms_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x.new_empty(x.shape)


@_add_rms_norm.register_fake
def _(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@_rms_norm_backward.register_fake
def _(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, dtotal: torch.Tensor | None, eps: float, with_weight: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape if with_weight else 0)


def _save_for_rms_norm(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _save_for_add_rms_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, _, weight, ctx.eps = inputs
    ctx.save_for_backward(output[1], weight)


def _rms_norm_gradients(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    with_weight = ctx.needs_input_grad[1]
    dx, dweight = _rms_norm_backward(dy, x, weight, None, ctx.eps, with_weight)
    return dx, dweight if with_weight else None, None


def _add_rms_norm_gradients(ctx: Any, dy: torch.Tensor, dtotal: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    with_weight = ctx.needs_input_grad[2]
    dx, dweight = _rms_norm_backward(dy, total, weight, dtotal, ctx.eps, with_weight)
    return dx, dx, dweight if with_weight else None, None


_rms_norm.register_autograd(_rms_norm_gradients, setup_context=_save_for_rms_norm)
_add_rms_norm.register_autograd(_add_rms_norm_gradients, setup_context=_save_for_add_rms_norm)


@triton.jit(do_not_specialize=["T"])
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, total_ptr, scales_ptr, x_stride, residual_stride, eps, T,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, LARGEST: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    # int64: T * D exceeds 2^31 in a large packed batch; T does not
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    cols = tl.arange(0, BLOCK_D)[None, :]
    inside = (rows < T) & (cols < D)

    x = tl.load(x_ptr + rows * x_stride + cols, mask=inside, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + rows * residual_stride + cols, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + cols, mask=cols < D, other=0.0)  # loaded before the sum, which waits for the rows
    if residual_ptr is not None:
        total = (x + residual).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + rows * D + cols, total, mask=inside)
        x = total.to(tl.float32)
    inv_rms = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / D + eps)
    y = x * inv_rms * weight.to(tl.float32)
    if scales_ptr is not None:
        y, scale = to_fp8(y, LARGEST, LEAST)
        tl.store(scales_ptr + rows, scale, mask=rows < T)
        y = y.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + rows * D + cols, y, mask=inside)


@triton.jit(do_not_specialize=["T"])
def _rms_norm_backward_kernel(
    dy_ptr, x_ptr, weight_ptr, dtotal_ptr, dx_ptr, partials_ptr, dy_stride, x_stride, dtotal_stride, eps, T,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, BLOCK_D)[None, :]
    weight = tl.load(weight_ptr + cols, mask=cols < D, other=0.0).to(tl.float32)
    dweight = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for block in tl.range(tl.program_id(0), tl.cdiv(T, ROWS), tl.num_programs(0), num_stages=STAGES):
        rows = (block * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        inside = (rows < T) & (cols < D)
        x = tl.load(x_ptr + rows * x_stride + cols, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + rows * dy_stride + cols, mask=inside, other=0.0).to(tl.float32)
        if dtotal_ptr is not None:
            dtotal = tl.load(dtotal_ptr + rows * dtotal_stride + cols, mask=inside, other=0.0).to(tl.float32)

        inv_rms = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / D + eps)
        projection = tl.sum(dy * weight * x, axis=1, keep_dims=True) / D * inv_rms * inv_rms
        dx = (dy * weight - x * projection) * inv_rms
        if dtotal_ptr is not None:
            dx += dtotal
        if partials_ptr is not None:
            dweight += dy * x * inv_rms
        tl.store(dx_ptr + rows * D + cols, dx, mask=inside)
    if partials_ptr is not None:
        partials = partials_ptr + tl.program_id(0).to(tl.int64) * D + cols
        tl.store(partials, tl.sum(dweight, axis=0, keep_dims=True), mask=cols < D)
