"""Pooling as custom operators for torch.compile and autograd: work lists and kernel launches.

Shapes: T packed tokens, n sequences, D hidden size.
The work lists are built on the host from spans on the host, so nothing here waits for the device. How a span is cut
into pieces depends on its own length alone, so a vector has the same bits in any batch.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastvec_kernels._launch import launch, next_power_of_2, operator, to_device
from fastvec_kernels.pooling.kernels import backward_kernel, finish_kernel, pool_kernel, sum_partials_kernel

IntArray = npt.NDArray[np.int64]

# Tokens per piece. A batch of 32k tokens has at least 512 such pieces, which is 97 % of 4 for each of an H100's 132
# multiprocessors. Each multiprocessor then has 62 kB of bfloat16 hidden states of 1,024 dimensions in flight; an H200
# needs 36 kB (4.8 TB/s at a latency of 1 µs), and pieces of 128 tokens would give only 31 kB. One row of partial sums
# per 64 rows of bfloat16 adds 3 % of memory traffic; pieces of 32 tokens would add 6 %.
PIECE = 64
WIDEST = 8192  # largest hidden size: a tile row twice as wide needs more registers than a program has
SUMMED_PIECES, SUMMED_COLUMNS = 32, 128  # a tile of partial sums: 16 kB


def span_bounds(spans: torch.Tensor, tokens: int) -> tuple[IntArray, IntArray]:
    """Return begin and end of each span; raise ValueError if one is empty or not inside the `tokens`."""
    begin, end = spans.numpy().T
    if ((begin < 0) | (end <= begin) | (end > tokens)).any():
        raise ValueError(f"pool needs non-empty spans inside {tokens} tokens, got {spans.tolist()}")
    return begin, end


def pooled_bounds(spans: torch.Tensor, tokens: int, mode: str) -> tuple[IntArray, IntArray]:
    """Return the bounds of the tokens that are read: one token of the span for `last` and `first`."""
    begin, end = span_bounds(spans, tokens)
    if mode == "last":
        return end - 1, end
    if mode == "first":
        return begin, begin + 1
    return begin, end


@operator("fastvec::pool")
def fused_pool(
    hidden: torch.Tensor,
    spans: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    ranges: torch.Tensor | None,
    mode: str,
    eps: float,
    dims: int,
    normalize: bool,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """Compute all of `pool`, for inference: `out_dtype` is float32, float16, bfloat16, int8 or uint8 (binary)."""
    y = hidden.new_empty(len(spans), dims // 8 if out_dtype == torch.uint8 else dims, dtype=out_dtype)
    _launch_forward(hidden, spans, residual, weight, ranges, y, mode, eps, dims, weight is not None, normalize)
    return y


@fused_pool.register_fake
def _(
    hidden: torch.Tensor,
    spans: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    ranges: torch.Tensor | None,
    mode: str,
    eps: float,
    dims: int,
    normalize: bool,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    return hidden.new_empty(len(spans), dims // 8 if out_dtype == torch.uint8 else dims, dtype=out_dtype)


@torch.library.custom_op("fastvec::weighted_sums", mutates_args=())
def weighted_sums(
    hidden: torch.Tensor,
    spans: torch.Tensor,
    residual: torch.Tensor | None,
    mode: str,
    normed: bool,
    eps: float,
    dims: int,
) -> torch.Tensor:
    """Return Σ w_t x_t, if `normed` Σ w_t x_t / sqrt(mean(x_t²) + eps), as [n, dims] float32; differentiable."""
    y = hidden.new_empty(len(spans), dims, dtype=torch.float32)
    _launch_forward(hidden, spans, residual, None, None, y, mode, eps, dims, normed, False)
    return y


@weighted_sums.register_fake
def _(
    hidden: torch.Tensor,
    spans: torch.Tensor,
    residual: torch.Tensor | None,
    mode: str,
    normed: bool,
    eps: float,
    dims: int,
) -> torch.Tensor:
    return hidden.new_empty(len(spans), dims, dtype=torch.float32)


@torch.library.custom_op("fastvec::weighted_sums_backward", mutates_args=())
def weighted_sums_backward(
    grad: torch.Tensor,
    hidden: torch.Tensor,
    spans: torch.Tensor,
    residual: torch.Tensor | None,
    mode: str,
    normed: bool,
    eps: float,
) -> torch.Tensor:
    """Return the gradient of x [T, D] in the wider dtype of `hidden` and `residual`; zero outside all spans."""
    begin, end = pooled_bounds(spans, len(hidden), mode)
    layers = _disjoint_layers(begin, end)
    dtype = _gradient_dtype(hidden, residual)
    inputs = (grad.contiguous(), hidden, residual, mode, normed, eps)
    if len(layers) == 1:
        return _launch_backward(*inputs, begin, end, layers[0], dtype)
    total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for layer in layers:
        total += _launch_backward(*inputs, begin, end, layer, torch.float32)
    return total.to(dtype)


@weighted_sums_backward.register_fake
def _(
    grad: torch.Tensor,
    hidden: torch.Tensor,
    spans: torch.Tensor,
    residual: torch.Tensor | None,
    mode: str,
    normed: bool,
    eps: float,
) -> torch.Tensor:
    return hidden.new_empty(hidden.shape, dtype=_gradient_dtype(hidden, residual))


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    hidden, spans, residual, ctx.mode, ctx.normed, ctx.eps, _ = inputs
    ctx.save_for_backward(hidden, spans, residual)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    hidden, spans, residual = ctx.saved_tensors
    dx = weighted_sums_backward(grad, hidden, spans, residual, ctx.mode, ctx.normed, ctx.eps)
    return dx.to(hidden.dtype), None, None if residual is None else dx.to(residual.dtype), None, None, None, None


weighted_sums.register_autograd(_backward, setup_context=_keep_for_backward)


def _gradient_dtype(hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.dtype:
    return hidden.dtype if residual is None else torch.promote_types(hidden.dtype, residual.dtype)


def _disjoint_layers(begin: IntArray, end: IntArray) -> list[IntArray]:
    """Group the spans' indices into layers of spans that do not overlap.

    There are as many layers as the largest number of spans that cover one token, which is the minimum.
    """
    order = np.argsort(begin, kind="stable")
    if (begin[order][1:] >= end[order][:-1]).all():
        return [order]
    layers: list[list[int]] = []
    for span in order.tolist():
        free = next((layer for layer in layers if end[layer[-1]] <= begin[span]), None)
        if free is None:
            layers.append([span])
        else:
            free.append(span)
    return [np.array(layer) for layer in layers]


def _pieces(begin: IntArray, end: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Cut the intervals into pieces of PIECE tokens, in order.

    Returns, for each piece, the index of its interval, the interval's tokens before the piece, and the piece's tokens.
    """
    lengths = end - begin
    counts = -(-lengths // PIECE)
    owner = np.repeat(np.arange(len(begin)), counts)
    before = (np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]) * PIECE
    return owner, before, np.minimum(lengths[owner] - before, PIECE)


def _items(columns: list[IntArray], device: torch.device) -> torch.Tensor:
    """Stack the columns to an int32 tensor [items, columns] on `device`."""
    return to_device(np.stack(columns, axis=1).astype(np.int32), device)


def _rows_contiguous(x: torch.Tensor | None) -> torch.Tensor | None:
    return x if x is None or x.stride(1) == 1 else x.contiguous()


def _tile(width: int, tensors: int, element_size: int) -> dict[str, int]:
    """Return a tile with about 128 bytes per thread over the `tensors` read: eight 128-bit loads in flight.

    In rows of at least 256 columns, a warp reads at least 256 columns of one row, so one thread has all rows of a
    column.
    """
    block_d = max(next_power_of_2(width), 8)
    warps = min(max(block_d // 256, 1), 8)
    rows = min(max(128 * 32 * warps // (block_d * tensors * element_size), 1), 16)
    return {"ROWS": rows, "BLOCK_D": block_d, "num_warps": warps}


def _launch_forward(
    hidden: torch.Tensor,
    spans: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    ranges: torch.Tensor | None,
    y: torch.Tensor,
    mode: str,
    eps: float,
    dims: int,
    normed: bool,
    normalize: bool,
) -> None:
    D = hidden.shape[1]
    begin, end = pooled_bounds(spans, len(hidden), mode)
    owner, before, tokens = _pieces(begin, end)
    counts = np.bincount(owner)
    in_long = counts[owner] > 1
    target = np.where(in_long, -np.cumsum(in_long, dtype=np.int64), owner)  # a span, or -1 - the row of partial sums
    items = _items([begin[owner] + before, tokens, before, target], hidden.device)
    partials = y.new_empty(int(in_long.sum()), dims, dtype=torch.float32)
    hidden, residual = hidden if hidden.stride(1) == 1 else hidden.contiguous(), _rows_contiguous(residual)
    weight, ranges = (None if x is None else x.contiguous() for x in (weight, ranges))
    finish = (weight, ranges, y, dims)
    weighted = mode == "weighted_mean"
    tile = _tile(D if normed else dims, 1 if residual is None else 2, hidden.element_size())
    if mode in ("last", "first"):
        tile["ROWS"] = 1
    launch(
        pool_kernel, (len(owner),), hidden, residual, items, partials, *finish,
        hidden.stride(0), 0 if residual is None else residual.stride(0), eps,
        D=D, NORMED=normed, WEIGHTED=weighted, NORMALIZE=normalize, **tile,
    )  # fmt: skip
    if len(partials):
        long = np.flatnonzero(counts > 1)
        first = np.cumsum(counts[long]) - counts[long]
        items = _items([first, counts[long], long, (end - begin)[long]], hidden.device)
        blocks = -(-dims // SUMMED_COLUMNS)
        launch(
            sum_partials_kernel, (len(long), blocks), partials, items, dims,
            PIECES=SUMMED_PIECES, COLUMNS=SUMMED_COLUMNS, num_warps=4,
        )  # fmt: skip
        block_d = max(next_power_of_2(dims), 8)
        launch(
            finish_kernel, (len(long),), partials, items, *finish,
            WEIGHTED=weighted, NORMALIZE=normalize, BLOCK_D=block_d, num_warps=min(max(block_d // 256, 1), 16),
        )  # fmt: skip


def _launch_backward(
    grad: torch.Tensor,
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    mode: str,
    normed: bool,
    eps: float,
    begin: IntArray,
    end: IntArray,
    layer: IntArray,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the gradient through the spans of `layer`, which do not overlap and are sorted by their begin."""
    T, D = hidden.shape
    gap_begin, gap_end = np.append(0, end[layer]), np.append(begin[layer], T)
    begins, ends = np.concatenate([begin[layer], gap_begin]), np.concatenate([end[layer], gap_end])
    spans = np.concatenate([layer, np.full(len(gap_begin), -1)])
    owner, before, tokens = _pieces(begins, ends)
    items = _items([begins[owner] + before, tokens, before, spans[owner], (ends - begins)[owner]], hidden.device)
    dx = torch.empty(T, D, dtype=dtype, device=hidden.device)
    hidden, residual = hidden if hidden.stride(1) == 1 else hidden.contiguous(), _rows_contiguous(residual)
    launch(
        backward_kernel, (len(owner),), grad, hidden, residual, items, dx,
        hidden.stride(0), 0 if residual is None else residual.stride(0), grad.shape[1], eps,
        D=D, NORMED=normed, WEIGHTED=mode == "weighted_mean", **_tile(D, 2, hidden.element_size()),
    )  # fmt: skip
    return dx
