"""Rotary embeddings and attention in one kernel, directly from the fused QKV product: for inference on short sequences.

    o = attention(*rope(qkv, cos, sin, …), plan, …)

A program holds a head of k and v of one sequence. It rotates the keys once, then the queries tile by tile, so that
rotated q and k never go through memory: 4 (H + KV) · D bytes a token less, in half precision. The halves of a head are
tiles of their own, as rotation mixes them: q·k = q₁·k₁ + q₂·k₂.
If a sequence of the batch is longer than every class of short sequences, `rope` and `attention` run instead.

Shapes: T packed tokens, H heads of q, KV of k and of v, D head size.
"""

import torch

from fastvec_kernels._launch import launch, next_power_of_2, records_gradient, tl, triton
from fastvec_kernels._switch import op, uses_kernel
from fastvec_kernels.attention.configs import CLASSES, widest_head
from fastvec_kernels.attention.forward import softmax
from fastvec_kernels.attention.interface import attention, attention_reference, check_options
from fastvec_kernels.attention.op import choose, tiled
from fastvec_kernels.attention.parts import Batch, Tile, row_positions, sequence_of
from fastvec_kernels.attention.plan import AttentionPlan, check_tokens, lengths_of, list_programs
from fastvec_kernels.quantize import rows_of
from fastvec_kernels.rope.interface import check_shapes, flat, rope, rope_reference

LEAST_HEAD = 32  # its halves have the 16 columns that a matrix product needs


def rope_attention_reference(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    plan: AttentionPlan,
    *,
    heads: int,
    kv_heads: int,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    bias: torch.Tensor | None = None,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Reference implementation: the references of `rope` and of `attention`; q, k and v have the dtype of `qkv`."""
    q, k, v = rope_reference(
        qkv, cos, sin, heads=heads, kv_heads=kv_heads, q_weight=q_weight, k_weight=k_weight, eps=eps, bias=bias
    )
    return attention_reference(q, k, v, plan, scale=scale, causal=causal, window=window, softcap=softcap, sinks=sinks)


@op("rope_attention", rope_attention_reference)
def rope_attention(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    plan: AttentionPlan,
    *,
    heads: int,
    kv_heads: int,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    bias: torch.Tensor | None = None,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate q and k of `qkv` [T, (H + 2 KV) · D] and attend inside each sequence of `plan` -> [T, H, D].

    The arguments are those of `rope` and of `attention`. The angles, `cos` and `sin` [T, R/2], must be equal for tokens
    at the same position of their sequences: the kernel reads those of the longest sequence for all. The kernel records
    no gradient; if one is needed, `rope` and `attention` run.
    Raises ValueError if shapes or the plan do not fit together.
    """
    classes: dict[int, Tile] = {}
    lengths = lengths_of(plan.host_lengths)
    if lengths.longest <= CLASSES[-1] and all(
        uses_kernel(name, qkv) for name in ("rope_attention", "rope", "attention")
    ):
        check_shapes(qkv, cos, sin, heads, kv_heads, q_weight, k_weight, bias)
        check_options(heads, scale, window, softcap, sinks)
        check_tokens(lengths.tokens, len(qkv))
        size = qkv.shape[1] // (heads + 2 * kv_heads)
        if _fits(size, cos, qkv.dtype, heads, kv_heads) and not records_gradient(qkv, q_weight, k_weight, bias, sinks):
            sizes = (heads // kv_heads, size, size)
            kind, rule, passes = choose(qkv, lengths, sizes, scale, causal, window, softcap, sinks is not None, 0.0)
            classes = passes.rotary
    if lengths.longest > max(classes, default=0):
        q, k, v = rope(
            qkv, cos, sin, heads=heads, kv_heads=kv_heads, q_weight=q_weight, k_weight=k_weight, eps=eps, bias=bias
        )
        return attention(q, k, v, plan, scale=scale, causal=causal, window=window, softcap=softcap, sinks=sinks)
    qkv, cos, sin = rows_of(qkv), rows_of(cos), rows_of(sin)
    o = qkv.new_empty(len(qkv), heads, size)
    work = list_programs(lengths, qkv.device, 1, kind.group, tuple(classes))
    batch = Batch(plan.cu_seqlens, work.items, plan.sequence_ids)
    tensors = (qkv, cos, sin, flat(q_weight), flat(k_weight), flat(bias), o, flat(sinks))
    strides = (qkv.stride(0), cos.stride(0), sin.stride(0))
    for tile, first, count in work.by_class(classes):
        launch(
            _rope_attention_kernel, (count, kv_heads), *tensors, *strides, lengths.longest_at, eps, batch, first, rule,
            H=heads, KV=kv_heads, KIND=kind, **tiled(tile),
        )  # fmt: skip
    return o


def _fits(size: int, cos: torch.Tensor, dtype: torch.dtype, heads: int, kv_heads: int) -> bool:
    """Return whether the kernel computes heads of `size` columns in this dtype."""
    if torch.compiler.is_compiling() or size > widest_head(dtype) or heads % kv_heads:
        return False
    return size == 2 * cos.shape[1] == next_power_of_2(size) >= LEAST_HEAD


@triton.jit
def _load_halves(base, offsets, inside, HALF: tl.constexpr):
    """Load, in fp32, the two halves of the heads at `offsets`; zeros for rows outside."""
    place = base + offsets[:, None] + tl.arange(0, HALF)[None, :]
    first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    return first, tl.load(place + HALF, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _rotate(
    x1, x2, cos_ptr, sin_ptr, cos_rows, sin_rows, inside, bias_ptr, bias_rows, weight_ptr, eps, HALF: tl.constexpr
):
    """Add the bias, normalize and rotate the heads of a tile, given and returned as two halves."""
    column = tl.arange(0, HALF)[None, :]
    if bias_ptr is not None:
        b1, b2 = _load_halves(bias_ptr, bias_rows, inside, HALF)
        x1, x2 = x1 + b1, x2 + b2
    if weight_ptr is not None:
        inv_rms = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, 1, keep_dims=True) / (2 * HALF) + eps)
        x1 = x1 * inv_rms * tl.load(weight_ptr + column).to(tl.float32)
        x2 = x2 * inv_rms * tl.load(weight_ptr + HALF + column).to(tl.float32)
    cos = tl.load(cos_ptr + cos_rows[:, None] + column, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + sin_rows[:, None] + column, mask=inside, other=0.0).to(tl.float32)
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@triton.jit(do_not_specialize=["longest_at", "first_item", "rule"])
def _rope_attention_kernel(
    qkv_ptr, cos_ptr, sin_ptr, q_weight_ptr, k_weight_ptr, bias_ptr, o_ptr, sinks_ptr,
    stride, cos_stride, sin_stride, longest_at, eps, batch, first_item, rule,
    H: tl.constexpr, KV: tl.constexpr, KIND: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = KIND.head_dim
    HALF: tl.constexpr = D // 2
    DTYPE: tl.constexpr = tl.float32 if KIND.upcast else qkv_ptr.dtype.element_ty
    item = batch.items + 2 * (first_item + tl.program_id(0))
    sequence, start, length = sequence_of(item, batch)
    kv_head = tl.program_id(1)
    base = qkv_ptr + start.to(tl.int64) * stride
    # by the position alone, so that all programs find the angles in the cache
    cos_ptr += longest_at.to(tl.int64) * cos_stride
    sin_ptr += longest_at.to(tl.int64) * sin_stride

    key, column = tl.arange(0, TILE.keys), tl.arange(0, D)[None, :]
    inside = (key < length)[:, None]
    k_column, v_column = (H + kv_head) * D, (H + KV + kv_head) * D
    k1, k2 = _load_halves(base, key * stride + k_column, inside, HALF)
    k1, k2 = _rotate(  # key * 0: the bias of one head for all keys
        k1, k2, cos_ptr, sin_ptr, key * cos_stride, key * sin_stride, inside,
        bias_ptr, key * 0 + k_column, k_weight_ptr, eps, HALF,
    )  # fmt: skip
    k1, k2 = k1.to(DTYPE), k2.to(DTYPE)
    v = tl.load(base + (key * stride)[:, None] + v_column + column, mask=inside, other=0.0)
    if bias_ptr is not None:
        v = (v.to(tl.float32) + tl.load(bias_ptr + v_column + column).to(tl.float32)).to(qkv_ptr.dtype.element_ty)
    v = v.to(DTYPE)
    for first_row in tl.range(0, length * KIND.group, TILE.rows):
        token, head = row_positions(first_row, kv_head, KIND, TILE.rows)
        rows_inside = (token < length)[:, None]
        q1, q2 = _load_halves(base, token * stride + head * D, rows_inside, HALF)
        q1, q2 = _rotate(
            q1, q2, cos_ptr, sin_ptr, token * cos_stride, token * sin_stride, rows_inside,
            bias_ptr, head * D, q_weight_ptr, eps, HALF,
        )  # fmt: skip
        products = tl.dot(q1.to(DTYPE), k1.T, input_precision=KIND.precision)
        products = tl.dot(q2.to(DTYPE), k2.T, products, input_precision=KIND.precision)
        p, _, total = softmax(products, token, key, head, sequence, length, sinks_ptr, batch, rule, KIND)
        o = tl.dot(p.to(DTYPE), v, input_precision=KIND.precision) / total[:, None]
        row = (start + token).to(tl.int64) * H + head
        tl.store(o_ptr + row[:, None] * D + column, o, mask=rows_inside)
