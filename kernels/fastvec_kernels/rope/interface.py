"""Rotary position embeddings of q and k, computed directly from the fused QKV product, with its bias and q/k-norm.

    x = qkv + bias                                      with a bias (Qwen2)
    x = x / sqrt(mean(x²) + eps) · w, for each head     with norms of q and k (Qwen3, Gemma 3)
    y[:R/2]  = x[:R/2] · cos − x[R/2:R] · sin             the halves of the rotated part of a head of q or k
    y[R/2:R] = x[R/2:R] · cos + x[:R/2] · sin             ("rotate_half"); the rest of the head passes through

The backward pass rotates by the opposite angle, then differentiates the norm as rms_norm does.

Shapes: T packed tokens, H heads of q, KV of k and of v, D head size, R ≤ D rotary size.
A custom operator must not return a view of its input, so `rope` makes v a view of qkv outside the operator. It does so
only if there is no bias to add to v and no gradient is recorded: with a view, adding v's gradient to that of q and k
would take one more pass over all three.
The kernels compute in fp32 whatever the dtypes and round once, at the store. Without a GPU, every product is rounded as
in a plain model; this takes a third of the time of fp32 copies.
"""

from typing import Any

import torch

from fastvec_kernels._launch import call, operator, records_gradient
from fastvec_kernels._switch import op, uses_kernel
from fastvec_kernels.quantize import rows_of
from fastvec_kernels.rms_norm import rms_norm_reference, rms_norm_torch
from fastvec_kernels.rope.kernels import Shape, launch_rope, launch_rope_backward

WIDEST_HEAD = 1024  # a tile contains at least one whole head


def rope_reference(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    heads: int,
    kv_heads: int,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reference implementation, in float32 or wider."""
    wide = torch.promote_types(qkv.dtype, torch.float32)  # float64 stays float64, for gradcheck
    x = qkv if bias is None else qkv.to(wide) + bias.to(wide)
    all_heads = heads + 2 * kv_heads
    q, k, v = x.unflatten(1, (all_heads, x.shape[1] // all_heads)).split([heads, kv_heads, kv_heads], 1)
    turned = []
    for y, weight in ((q.to(wide), q_weight), (k.to(wide), k_weight)):
        if weight is not None:
            y = rms_norm_reference(y, weight, eps)
        half = cos.shape[1]
        first, second, rest = y.split([half, half, y.shape[2] - 2 * half], 2)
        c, s = cos.to(wide)[:, None], sin.to(wide)[:, None]
        turned.append(torch.cat([first * c - second * s, second * c + first * s, rest], 2).to(qkv.dtype))
    return turned[0], turned[1], v.to(qkv.dtype)


@op("rope", rope_reference)
def rope(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    heads: int,
    kv_heads: int,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split `qkv` and rotate q and k -> q [T, H, D], k and v [T, KV, D].

    Without a bias and without a gradient, v is a view of `qkv`.

    Args:
        qkv: Fused QKV product [T, (H + 2 KV) · D].
        cos: Cosines of the rotary angles [T, R/2]. The kernels return no gradient for `cos` and `sin`.
        sin: Sines of the rotary angles [T, R/2].
        heads: Number of q heads, H.
        kv_heads: Number of k heads and of v heads, KV.
        q_weight: Weight [D] of the RMSNorm of each q head; both norm weights are given or neither.
        k_weight: Weight [D] of the RMSNorm of each k head.
        eps: Epsilon of these norms.
        bias: [(H + 2 KV) · D], added to `qkv` before the norms.

    Raises:
        ValueError: If a shape does not fit.
    """
    check_shapes(qkv, cos, sin, heads, kv_heads, q_weight, k_weight, bias)
    head_dim = qkv.shape[1] // (heads + 2 * kv_heads)
    if qkv.numel() == 0 or head_dim > WIDEST_HEAD or not uses_kernel("rope", qkv):
        return _rope_torch(qkv if bias is None else qkv + bias, cos, sin, heads, kv_heads, q_weight, k_weight, eps)
    with_v = bias is not None or records_gradient(qkv)
    q, k, v = call(_rope, qkv, cos, sin, q_weight, k_weight, bias, heads, kv_heads, eps, with_v)
    if not with_v:
        v = qkv.view(len(qkv), heads + 2 * kv_heads, head_dim)[:, heads + kv_heads :]
    return q, k, v


def _rope_torch(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: int,
    kv_heads: int,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotate q and k together; without a gradient in place, else rolling each head by half pairs its two halves."""
    all_heads, half = heads + 2 * kv_heads, cos.shape[1]
    x, v = qkv.unflatten(1, (all_heads, qkv.shape[1] // all_heads)).split([heads + kv_heads, kv_heads], 1)
    if q_weight is not None and k_weight is not None:
        both = zip(x.split([heads, kv_heads], 1), (q_weight, k_weight), strict=True)
        x = torch.cat([_head_norm(y, weight, eps) for y, weight in both], 1)
    turning, rest = x[..., : 2 * half], x[..., 2 * half :]
    if records_gradient(x) or torch.compiler.is_compiling():
        cos, sin = (torch.cat(pair, 1).to(x.dtype)[:, None] for pair in ((cos, cos), (-sin, sin)))
        turned = torch.addcmul(turning * cos, turning.roll(half, -1), sin)
    else:
        cos, sin = (angle.to(x.dtype)[:, None] for angle in (cos, sin))
        halves = turning.unflatten(2, (2, half))
        turned = (halves * cos[:, None]).flatten(2)
        turned[..., :half].addcmul_(turning[..., half:], sin, value=-1)
        turned[..., half:].addcmul_(turning[..., :half], sin)
    if rest.shape[2]:
        turned = torch.cat([turned, rest], -1)
    q, k = turned.split([heads, kv_heads], 1)
    return q, k, v


def _head_norm(y: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return rms_norm_torch(y.flatten(0, 1), weight, eps).view(y.shape)


def check_shapes(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: int,
    kv_heads: int,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> None:
    all_heads = heads + 2 * kv_heads
    if heads < 1 or kv_heads < 1 or qkv.ndim != 2 or qkv.shape[1] == 0 or qkv.shape[1] % all_heads:
        given = f"{tuple(qkv.shape)} for {heads} and {kv_heads} heads"
        raise ValueError(f"rope needs qkv [T, (heads + 2 * kv_heads) * head_dim], got {given}")
    T, head_dim = qkv.shape[0], qkv.shape[1] // all_heads
    if cos.shape != sin.shape or cos.ndim != 2 or len(cos) != T or not 2 <= 2 * cos.shape[1] <= head_dim:
        given = f"{tuple(cos.shape)} and {tuple(sin.shape)}"
        raise ValueError(f"rope needs cos and sin [{T}, half the rotary size: 1 to {head_dim // 2}], got {given}")
    if (q_weight is None) != (k_weight is None):
        raise ValueError("rope needs the norm weights of both q and k, or of neither")
    for weight in (q_weight, k_weight):
        if weight is not None and weight.shape != (head_dim,):
            raise ValueError(f"rope needs norm weights of ({head_dim},), got {tuple(weight.shape)}")
    if bias is not None and bias.shape != qkv.shape[1:]:
        raise ValueError(f"rope needs a bias of {tuple(qkv.shape[1:])}, got {tuple(bias.shape)}")


def _shape(qkv_width: int, cos: torch.Tensor, heads: int, kv_heads: int) -> Shape:
    head_dim = qkv_width // (heads + 2 * kv_heads)
    return Shape(heads, kv_heads, head_dim, cos.shape[1])


@operator("fastvec::rope")
def _rope(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    heads: int,
    kv_heads: int,
    eps: float,
    with_v: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = _shape(qkv.shape[1], cos, heads, kv_heads)
    weights = (flat(q_weight), flat(k_weight))
    return launch_rope(rows_of(qkv), (rows_of(cos), rows_of(sin)), weights, flat(bias), shape, eps, with_v)


@torch.library.custom_op("fastvec::rope_backward", mutates_args=())
def _rope_backward(
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    qkv: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    with_weights: bool,
    with_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    heads, kv_heads, head_dim = dq.shape[1], dk.shape[1], dq.shape[2]
    shape = Shape(heads=heads, kv_heads=kv_heads, head_dim=head_dim, half=cos.shape[1])
    gradients = (dq.contiguous(), dk.contiguous(), dv.contiguous())
    qkv, weights = None if qkv is None else rows_of(qkv), (flat(q_weight), flat(k_weight))
    angles = (rows_of(cos), rows_of(sin))
    return launch_rope_backward(gradients, qkv, angles, weights, flat(bias), shape, eps, with_weights, with_bias)


def flat(x: torch.Tensor | None) -> torch.Tensor | None:
    """Return a vector whose numbers are adjacent, as the kernels read weights and biases."""
    return None if x is None else x.contiguous()


@_rope.register_fake
def _(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    heads: int,
    kv_heads: int,
    eps: float,
    with_v: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    T, head_dim = qkv.shape[0], qkv.shape[1] // (heads + 2 * kv_heads)
    q, k, v = ((T, heads, head_dim), (T, kv_heads, head_dim), (T if with_v else 0, kv_heads, head_dim))
    return qkv.new_empty(q), qkv.new_empty(k), qkv.new_empty(v)


@_rope_backward.register_fake
def _(
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    qkv: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    with_weights: bool,
    with_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    head_dim = dq.shape[2]
    width = (dq.shape[1] + 2 * dk.shape[1]) * head_dim
    sizes = (head_dim if with_weights else 0, head_dim if with_weights else 0, width if with_bias else 0)
    dq_weight, dk_weight, dbias = (dq.new_empty(size, dtype=torch.float32) for size in sizes)
    return dq.new_empty(dq.shape[0], width), dq_weight, dk_weight, dbias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    qkv, cos, sin, q_weight, k_weight, bias, _, _, ctx.eps, _ = inputs
    if q_weight is None:
        ctx.save_for_backward(None, cos, sin, None, None, None)  # the gradient of a rotation does not need its input
    else:
        ctx.save_for_backward(qkv, cos, sin, q_weight, k_weight, bias)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    saved = ctx.saved_tensors
    _, _, _, for_q, for_k, for_bias, *_ = ctx.needs_input_grad
    dqkv, dq_weight, dk_weight, dbias = _rope_backward(dq, dk, dv, *saved, ctx.eps, for_q or for_k, for_bias)
    dq_weight = dq_weight.to(saved[3].dtype) if for_q else None
    dk_weight = dk_weight.to(saved[4].dtype) if for_k else None
    dbias = dbias.to(ctx.bias_dtype) if for_bias else None
    return dqkv, None, None, dq_weight, dk_weight, dbias, None, None, None, None


_rope.register_autograd(_gradients, setup_context=_save)
