"""Triton kernels of rotary embeddings, their tiles and their launches.

A program handles a group of heads (all q, all k or all v) of a few tokens as rows of one tile, so that a cosine is
loaded once for up to 8 heads. A head has three segments: the two halves that are rotated, and the rest. For rows that
are not rotated (v), the cosines are 1, the sines 0 and the norm 1.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

from fastvec_kernels._launch import ceil_div, launch, next_power_of_2, tl, triton

GRADIENT_PROGRAMS = 512  # for the gradients of weights and bias: a wave of 4 per multiprocessor on 128 of them
WARPS = 4


class Shape(NamedTuple):
    """Sizes of a fused QKV product; `half` is the number of rotated pairs of a head."""

    heads: int
    kv_heads: int
    head_dim: int
    half: int

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """A tile has `tokens` tokens of a group of `block_heads` heads.

    A row of qkv has `q_groups` groups of q heads, and `kv_groups` each of k and v heads.
    """

    tokens: int
    block_heads: int
    q_groups: int
    kv_groups: int
    block_half: int
    block_rest: int

    @classmethod
    def of(cls, shape: Shape) -> "Tiling":
        """Choose a tile: per thread, 8 elements of each half (16 bytes in half precision) and up to 32 of the rest."""
        block_half = next_power_of_2(shape.half)
        block_rest = next_power_of_2(max(shape.head_dim - 2 * shape.half, 1))
        rows = max(min(1024 // block_half, 4096 // block_rest), 1)
        block_heads = min(next_power_of_2(shape.heads), 8, rows)
        return cls(
            tokens=rows // block_heads,
            block_heads=block_heads,
            q_groups=ceil_div(shape.heads, block_heads),
            kv_groups=ceil_div(shape.kv_heads, block_heads),
            block_half=block_half,
            block_rest=block_rest,
        )


def launch_rope(
    qkv: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    weights: tuple[torch.Tensor | None, torch.Tensor | None],
    bias: torch.Tensor | None,
    shape: Shape,
    eps: float,
    with_v: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q, k and, if `with_v`, v, else an empty tensor in its place."""
    T, (tiling, constants) = len(qkv), _tiled(shape)
    q, k, v = (
        qkv.new_empty(rows, heads, shape.head_dim)
        for rows, heads in ((T, shape.heads), (T, shape.kv_heads), (T if with_v else 0, shape.kv_heads))
    )
    groups = tiling.q_groups + tiling.kv_groups * (2 if with_v else 1)
    pointers = (qkv, *angles, *weights, bias, q, k, v)
    strides = (qkv.stride(0), angles[0].stride(0), angles[1].stride(0))
    grid = (ceil_div(T, tiling.tokens) * groups,)
    launch(_rope_kernel, grid, *pointers, *strides, eps, T, groups, **constants, num_warps=WARPS)
    return q, k, v


def launch_rope_backward(
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    qkv: torch.Tensor | None,
    angles: tuple[torch.Tensor, torch.Tensor],
    weights: tuple[torch.Tensor | None, torch.Tensor | None],
    bias: torch.Tensor | None,
    shape: Shape,
    eps: float,
    with_weights: bool,
    with_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of qkv, q_weight, k_weight and bias; the last three in fp32, or empty if not requested."""
    dq, T, (tiling, constants) = gradients[0], len(gradients[0]), _tiled(shape)
    with_v = len(gradients[2]) == T
    dqkv = (dq.new_empty if with_v else dq.new_zeros)(T, shape.width)
    groups = tiling.q_groups + tiling.kv_groups * (2 if with_v else 1)
    programs = blocks = ceil_div(T, tiling.tokens)
    if with_weights or with_bias:  # each program sums over at least 8 blocks of tokens
        programs = max(min(blocks // 8, GRADIENT_PROGRAMS // groups), 1)
    dweights = dq.new_empty(programs if with_weights else 0, groups, shape.head_dim, dtype=torch.float32)
    dbias = dq.new_empty((programs * tiling.tokens, shape.width) if with_bias else 0, dtype=torch.float32)
    partials = (dweights if with_weights else None, dbias if with_bias else None)
    pointers = (*gradients, qkv, *angles, *weights, bias, dqkv, *partials)
    strides = (0 if qkv is None else qkv.stride(0), angles[0].stride(0), angles[1].stride(0))
    grid = (programs * groups,)
    launch(_rope_backward_kernel, grid, *pointers, *strides, eps, T, groups, programs, **constants, num_warps=WARPS)
    if with_bias:
        dbias = dbias.sum(0)
    if not with_weights:
        return dqkv, dweights.new_empty(0), dweights.new_empty(0), dbias
    of_q, of_k = dweights[:, : tiling.q_groups], dweights[:, tiling.q_groups : tiling.q_groups + tiling.kv_groups]
    return dqkv, of_q.sum((0, 1)), of_k.sum((0, 1)), dbias


@lru_cache(maxsize=64)  # called by every layer
def _tiled(shape: Shape) -> tuple[Tiling, dict[str, int]]:
    """Return the tiling of `shape`, and the kernels' constants."""
    tiling = Tiling.of(shape)
    return tiling, {
        "H": shape.heads,
        "KV": shape.kv_heads,
        "D": shape.head_dim,
        "HALF": shape.half,
        "TOKENS": tiling.tokens,
        "BLOCK_HEADS": tiling.block_heads,
        "Q_GROUPS": tiling.q_groups,
        "KV_GROUPS": tiling.kv_groups,
        "BLOCK_HALF": tiling.block_half,
        "BLOCK_REST": tiling.block_rest,
    }


@triton.jit
def _load_head(ptr, rows, half, rest, mask, HALF: tl.constexpr, D: tl.constexpr, other):
    """Load the three segments, in fp32, of the heads that begin at the offsets `rows`; `mask` selects rows."""
    first = tl.load(ptr + rows + half, mask=mask & (half < HALF), other=other).to(tl.float32)
    second = tl.load(ptr + rows + HALF + half, mask=mask & (half < HALF), other=other).to(tl.float32)
    third = other
    if D > 2 * HALF:
        third = tl.load(ptr + rows + 2 * HALF + rest, mask=mask & (rest < D - 2 * HALF), other=other).to(tl.float32)
    return first, second, third


@triton.jit
def _store_head(ptr, rows, half, rest, mask, HALF: tl.constexpr, D: tl.constexpr, first, second, third):
    tl.store(ptr + rows + half, first, mask=mask & (half < HALF))
    tl.store(ptr + rows + HALF + half, second, mask=mask & (half < HALF))
    if D > 2 * HALF:
        tl.store(ptr + rows + 2 * HALF + rest, third, mask=mask & (rest < D - 2 * HALF))


@triton.jit
def _dot_heads(x1, x2, x3, y1, y2, y3, HALF: tl.constexpr, D: tl.constexpr):
    """Return Σ x · y of each head."""
    dot = tl.sum(x1 * y1 + x2 * y2, axis=1, keep_dims=True)
    if D > 2 * HALF:
        dot += tl.sum(x3 * y3, axis=1, keep_dims=True)
    return dot


@triton.jit
def _heads_of(
    group, H, KV, TOKENS: tl.constexpr, BLOCK_HEADS: tl.constexpr, Q_GROUPS: tl.constexpr, KV_GROUPS: tl.constexpr
):
    """Return, per row of a tile: token in the block, head in its kind, heads of its kind, head in qkv, whether q or k.

    The kinds are q, k and v.
    """
    row = tl.arange(0, TOKENS * BLOCK_HEADS)[:, None]
    if group < Q_GROUPS:
        first, heads, before = group * BLOCK_HEADS, H, 0
    elif group < Q_GROUPS + KV_GROUPS:
        first, heads, before = (group - Q_GROUPS) * BLOCK_HEADS, KV, H
    else:
        first, heads, before = (group - Q_GROUPS - KV_GROUPS) * BLOCK_HEADS, KV, H + KV
    head = first + row % BLOCK_HEADS
    slot = before + head
    return row // BLOCK_HEADS, head, heads, slot, slot < H + KV


@triton.jit
def _select_by_group(group, of_q, of_k, of_v, Q_GROUPS: tl.constexpr, KV_GROUPS: tl.constexpr):
    """Return the pointer for the group's kind of heads: q, k or v."""
    if group < Q_GROUPS:
        ptr = of_q
    elif group < Q_GROUPS + KV_GROUPS:
        ptr = of_k
    else:
        ptr = of_v
    return ptr


@triton.jit
def _load_angles(cos_ptr, sin_ptr, cos_rows, sin_rows, half, mask, HALF: tl.constexpr):
    """Load cosines and sines; rows outside `mask` are not rotated."""
    cos = tl.load(cos_ptr + cos_rows + half, mask=mask & (half < HALF), other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + sin_rows + half, mask=mask & (half < HALF), other=0.0).to(tl.float32)
    return cos, sin


@triton.jit(do_not_specialize=["T", "groups"])
def _rope_kernel(
    qkv_ptr, cos_ptr, sin_ptr, q_weight_ptr, k_weight_ptr, bias_ptr, q_ptr, k_ptr, v_ptr,
    qkv_stride, cos_stride, sin_stride, eps, T, groups,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, Q_GROUPS: tl.constexpr, KV_GROUPS: tl.constexpr,
    BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    # the groups of a block of tokens are consecutive programs, so that they find its cosines in the L2 cache
    block, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    place, head, heads, slot, rotated = _heads_of(group, H, KV, TOKENS, BLOCK_HEADS, Q_GROUPS, KV_GROUPS)
    half, rest = tl.arange(0, BLOCK_HALF)[None, :], tl.arange(0, BLOCK_REST)[None, :]
    token = (block * TOKENS + place).to(tl.int64)
    inside = (token < T) & (head < heads)

    x1, x2, x3 = _load_head(qkv_ptr, token * qkv_stride + slot * D, half, rest, inside, HALF, D, 0.0)
    cos, sin = _load_angles(cos_ptr, sin_ptr, token * cos_stride, token * sin_stride, half, inside & rotated, HALF)
    if bias_ptr is not None:
        b1, b2, b3 = _load_head(bias_ptr, slot * D, half, rest, inside, HALF, D, 0.0)
        x1, x2, x3 = x1 + b1, x2 + b2, x3 + b3
    if q_weight_ptr is not None:
        weight_ptr = _select_by_group(group, q_weight_ptr, k_weight_ptr, k_weight_ptr, Q_GROUPS, KV_GROUPS)
        # place * 0: a weight loaded as a whole tile needs no layout conversion through shared memory (D = 256)
        w1, w2, w3 = _load_head(weight_ptr, place * 0, half, rest, rotated, HALF, D, 1.0)
        inv_rms = tl.rsqrt(_dot_heads(x1, x2, x3, x1, x2, x3, HALF, D) / D + eps)
        inv_rms = tl.where(rotated, inv_rms, 1.0)
        x1, x2, x3 = x1 * inv_rms * w1, x2 * inv_rms * w2, x3 * inv_rms * w3

    out_ptr = _select_by_group(group, q_ptr, k_ptr, v_ptr, Q_GROUPS, KV_GROUPS)
    y1, y2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    _store_head(out_ptr, (token * heads + head) * D, half, rest, inside, HALF, D, y1, y2, x3)


@triton.jit
def _norm_backward(x1, x2, x3, d1, d2, d3, w1, w2, w3, rotated, eps, HALF: tl.constexpr, D: tl.constexpr):
    """Return the gradients of the norm's input and, per row, of its weight; rows not `rotated` keep their d."""
    inv_rms = tl.rsqrt(_dot_heads(x1, x2, x3, x1, x2, x3, HALF, D) / D + eps)
    inv_rms = tl.where(rotated, inv_rms, 1.0)
    x1, x2, x3 = x1 * inv_rms, x2 * inv_rms, x3 * inv_rms
    dw1, dw2, dw3 = d1 * x1, d2 * x2, d3 * x3
    d1, d2, d3 = d1 * w1, d2 * w2, d3 * w3
    mean = tl.where(rotated, _dot_heads(x1, x2, x3, d1, d2, d3, HALF, D) / D, 0.0)
    d1, d2, d3 = (d1 - x1 * mean) * inv_rms, (d2 - x2 * mean) * inv_rms, (d3 - x3 * mean) * inv_rms
    return d1, d2, d3, dw1, dw2, dw3


@triton.jit(do_not_specialize=["T", "groups", "programs"])
def _rope_backward_kernel(
    dq_ptr, dk_ptr, dv_ptr, qkv_ptr, cos_ptr, sin_ptr, q_weight_ptr, k_weight_ptr, bias_ptr,
    dqkv_ptr, dweights_ptr, dbias_ptr, qkv_stride, cos_stride, sin_stride, eps, T, groups, programs,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, Q_GROUPS: tl.constexpr, KV_GROUPS: tl.constexpr,
    BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = (H + 2 * KV) * D
    program, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    place, head, heads, slot, rotated = _heads_of(group, H, KV, TOKENS, BLOCK_HEADS, Q_GROUPS, KV_GROUPS)
    dout_ptr = _select_by_group(group, dq_ptr, dk_ptr, dv_ptr, Q_GROUPS, KV_GROUPS)
    half, rest = tl.arange(0, BLOCK_HALF)[None, :], tl.arange(0, BLOCK_REST)[None, :]
    if q_weight_ptr is not None:
        weight_ptr = _select_by_group(group, q_weight_ptr, k_weight_ptr, k_weight_ptr, Q_GROUPS, KV_GROUPS)
        w1, w2, w3 = _load_head(weight_ptr, place * 0, half, rest, rotated, HALF, D, 1.0)
        if bias_ptr is not None:
            b1, b2, b3 = _load_head(bias_ptr, slot * D, half, rest, head < heads, HALF, D, 0.0)
    sums = tl.zeros([TOKENS * BLOCK_HEADS, BLOCK_HALF], tl.float32)
    sums_rest = tl.zeros([TOKENS * BLOCK_HEADS, BLOCK_REST], tl.float32)
    dw1, dw2, dw3, db1, db2, db3 = sums, sums, sums_rest, sums, sums, sums_rest

    for block in range(program, tl.cdiv(T, TOKENS), programs):
        token = (block * TOKENS + place).to(tl.int64)
        inside = (token < T) & (head < heads)
        y1, y2, d3 = _load_head(dout_ptr, (token * heads + head) * D, half, rest, inside, HALF, D, 0.0)
        cos, sin = _load_angles(cos_ptr, sin_ptr, token * cos_stride, token * sin_stride, half, inside & rotated, HALF)
        d1, d2 = y1 * cos + y2 * sin, y2 * cos - y1 * sin
        if q_weight_ptr is not None:
            x1, x2, x3 = _load_head(qkv_ptr, token * qkv_stride + slot * D, half, rest, inside, HALF, D, 0.0)
            if bias_ptr is not None:
                x1, x2, x3 = x1 + b1, x2 + b2, x3 + b3
            d1, d2, d3, s1, s2, s3 = _norm_backward(x1, x2, x3, d1, d2, d3, w1, w2, w3, rotated, eps, HALF, D)
            if dweights_ptr is not None:
                dw1, dw2, dw3 = dw1 + s1, dw2 + s2, dw3 + s3
        if dbias_ptr is not None:
            db1, db2, db3 = db1 + d1, db2 + d2, db3 + d3
        _store_head(dqkv_ptr, token * WIDTH + slot * D, half, rest, inside, HALF, D, d1, d2, d3)
    if dweights_ptr is not None:
        s1, s2, s3 = tl.sum(dw1, 0, keep_dims=True), tl.sum(dw2, 0, keep_dims=True), tl.sum(dw3, 0, keep_dims=True)
        row = tl.program_id(0) + tl.zeros([1, 1], tl.int32)
        _store_head(dweights_ptr, row * D, half, rest, row >= 0, HALF, D, s1, s2, s3)
    if dbias_ptr is not None:
        partials = (program * TOKENS + place) * WIDTH + slot * D
        _store_head(dbias_ptr, partials, half, rest, head < heads, HALF, D, db1, db2, db3)
