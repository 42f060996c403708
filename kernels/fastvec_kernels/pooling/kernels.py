"""Pooling kernels: they read the hidden states once and, for training, write their gradient once.

Shapes: n sequences, D hidden size.
A program sums one piece of a span in tiles [rows, D]. All rows of a column are in one thread, so the sum over rows
needs no exchange between threads. If a span has one piece, the same program finishes the vector (weight, L2, cast). For
a longer span each piece writes a row of partial sums. A second kernel adds these rows in order, one block of columns
per program, and a third finishes the vector.
"""

from fastvec_kernels._launch import tl, triton


@triton.jit
def _load_states(hidden_ptr, residual_ptr, hidden_stride, residual_stride, begin, row, cols, mask):
    """Load x [rows, columns] of the piece that starts at token `begin`; int64, as T · D may exceed 2^31."""
    start = begin.to(tl.int64)
    x = tl.load(hidden_ptr + start * hidden_stride + row[:, None] * hidden_stride + cols[None, :], mask, 0.0)
    x = x.to(tl.float32)
    if residual_ptr is not None:
        pointers = residual_ptr + start * residual_stride + row[:, None] * residual_stride + cols[None, :]
        x += tl.load(pointers, mask, 0.0).to(tl.float32)
    return x


@triton.jit
def _total_weight(length, WEIGHTED: tl.constexpr):
    total = length.to(tl.float32)
    if WEIGHTED:
        total = total * (total + 1) * 0.5
    return total


@triton.jit
def _finish(y, span, weight_ptr, ranges_ptr, y_ptr, dims, NORMALIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Apply weight, L2 and cast to a span's weighted mean `y` [BLOCK_D], and store it."""
    out_dtype: tl.constexpr = y_ptr.dtype.element_ty
    cols = tl.arange(0, BLOCK_D)
    in_row = cols < dims
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + cols, in_row, 0.0).to(tl.float32)
    if NORMALIZE:
        y = tl.where(in_row, y, 0.0)
        norm = tl.sqrt(tl.sum(y * y))
        y = y / tl.where(norm == 0, 1.0, norm)
    start = span.to(tl.int64)
    if out_dtype == tl.uint8:
        bits = tl.reshape((y > 0).to(tl.int32), (BLOCK_D // 8, 8)) << (7 - tl.arange(0, 8))[None, :]
        byte = tl.arange(0, BLOCK_D // 8)
        tl.store(y_ptr + start * (dims // 8) + byte, tl.sum(bits, 1).to(tl.uint8), mask=byte < dims // 8)
    else:
        if out_dtype == tl.int8:
            y = tl.div_rn(y, tl.load(ranges_ptr + cols, in_row, 1.0).to(tl.float32)) * 127
            y = tl.minimum(tl.maximum(y, -127.0), 127.0)
            y = (y + 12582912.0) - 12582912.0  # 1.5 · 2^23: the sum has no fraction bits, so it is rounded half to even
        tl.store(y_ptr + start * dims + cols, y.to(out_dtype), mask=in_row)


@triton.jit
def pool_kernel(
    hidden_ptr, residual_ptr, items_ptr, partials_ptr, weight_ptr, ranges_ptr, y_ptr, dims,
    hidden_stride, residual_stride, eps,
    D: tl.constexpr, NORMED: tl.constexpr, WEIGHTED: tl.constexpr, NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    item = items_ptr + 4 * tl.program_id(0)
    begin, tokens, before, target = tl.load(item), tl.load(item + 1), tl.load(item + 2), tl.load(item + 3)
    cols = tl.arange(0, BLOCK_D)
    in_row = cols < (D if NORMED else dims)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for first_row in tl.range(0, tokens, ROWS):
        row = first_row + tl.arange(0, ROWS)
        in_piece = row < tokens
        mask = in_piece[:, None] & in_row[None, :]
        x = _load_states(hidden_ptr, residual_ptr, hidden_stride, residual_stride, begin, row, cols, mask)
        if NORMED or WEIGHTED:
            scale = tl.full([ROWS], 1.0, tl.float32)
            if WEIGHTED:
                scale = (before + row + 1).to(tl.float32)
            if NORMED:
                scale *= tl.rsqrt(tl.sum(x * x, 1) / D + eps)
            x *= tl.where(in_piece, scale, 0.0)[:, None]  # with eps = 0 a row outside the piece has an infinite scale
        acc += tl.sum(x, 0)
    if target < 0:
        tl.store(partials_ptr + (-1 - target).to(tl.int64) * dims + cols, acc, mask=cols < dims)
    else:
        y = acc / _total_weight(tokens, WEIGHTED)
        _finish(y, target, weight_ptr, ranges_ptr, y_ptr, dims, NORMALIZE, BLOCK_D)


@triton.jit
def sum_partials_kernel(partials_ptr, items_ptr, dims, PIECES: tl.constexpr, COLUMNS: tl.constexpr):
    """Add a span's partial sums [pieces, dims] into the first row; a program adds one block of columns."""
    item = items_ptr + 4 * tl.program_id(0)
    start, pieces = tl.load(item).to(tl.int64) * dims, tl.load(item + 1)
    cols = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros([PIECES, COLUMNS], tl.float32)
    for first_piece in tl.range(0, pieces, PIECES):
        piece = first_piece + tl.arange(0, PIECES)
        mask = (piece < pieces)[:, None] & (cols < dims)[None, :]
        acc += tl.load(partials_ptr + start + piece[:, None] * dims + cols[None, :], mask, 0.0)
    tl.store(partials_ptr + start + cols, tl.sum(acc, 0), mask=cols < dims)


@triton.jit
def finish_kernel(
    partials_ptr, items_ptr, weight_ptr, ranges_ptr, y_ptr, dims,
    WEIGHTED: tl.constexpr, NORMALIZE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    item = items_ptr + 4 * tl.program_id(0)
    start, span, length = tl.load(item).to(tl.int64) * dims, tl.load(item + 2), tl.load(item + 3)
    cols = tl.arange(0, BLOCK_D)
    y = tl.load(partials_ptr + start + cols, cols < dims, 0.0) / _total_weight(length, WEIGHTED)
    _finish(y, span, weight_ptr, ranges_ptr, y_ptr, dims, NORMALIZE, BLOCK_D)


@triton.jit
def backward_kernel(
    grad_ptr, hidden_ptr, residual_ptr, items_ptr, dx_ptr, hidden_stride, residual_stride, dims, eps,
    D: tl.constexpr, NORMED: tl.constexpr, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx = w/r · (g − x · (x · g) / (D r²)) with r = sqrt(mean(x²) + eps), or w · g; zero if the span is −1."""
    item = items_ptr + 5 * tl.program_id(0)
    begin, tokens, before = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    span, length = tl.load(item + 3), tl.load(item + 4)
    cols = tl.arange(0, BLOCK_D)
    pooled_tokens = tl.where(span < 0, 0, tokens)
    g = tl.load(grad_ptr + span.to(tl.int64) * dims + cols, cols < tl.where(span < 0, 0, dims), 0.0)
    g = g / _total_weight(length, WEIGHTED)
    for first_row in tl.range(0, tokens, ROWS):
        row = first_row + tl.arange(0, ROWS)
        mask = (row < tokens)[:, None] & (cols < D)[None, :]
        w = tl.full([ROWS], 1.0, tl.float32)
        if WEIGHTED:
            w = (before + row + 1).to(tl.float32)
        if NORMED:
            in_span = row < pooled_tokens
            read = in_span[:, None] & (cols < D)[None, :]
            x = _load_states(hidden_ptr, residual_ptr, hidden_stride, residual_stride, begin, row, cols, read)
            scale = tl.where(in_span, tl.rsqrt(tl.sum(x * x, 1) / D + eps), 0.0)
            along = w * scale * (scale * scale * (tl.sum(x * g[None, :], 1) / D))
            dx = (w * scale)[:, None] * g[None, :] - along[:, None] * x
        else:
            dx = w[:, None] * g[None, :]
        pointers = dx_ptr + begin.to(tl.int64) * D + row[:, None] * D + cols[None, :]
        tl.store(pointers, dx.to(dx_ptr.dtype.element_ty), mask=mask)
