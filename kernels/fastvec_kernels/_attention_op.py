"""Attention as operators: what is launched for a batch, what autograd and the compiler know of it.

Shapes: T packed tokens, n sequences, H query heads, Hkv key and value heads, D and Dv head sizes.
A pass is one launch for the sequences longer than every class, and one for each class that has sequences.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from fastvec_kernels import _attention_backward as backward
from fastvec_kernels import _attention_forward as forward
from fastvec_kernels._attention_configs import Passes, configuration
from fastvec_kernels._attention_parts import Batch, Inputs, Kind, Rule, Strides, Tile
from fastvec_kernels._attention_plan import AttentionPlan
from fastvec_kernels._attention_specialized import fits_descriptors, forward_specialized
from fastvec_kernels._attention_torch import drop_below
from fastvec_kernels._launch import INTERPRETED, architecture, launch, needs_scratch, next_power_of_2

LOG2E = math.log2(math.e)
DELTA_ROWS = 16


def attention_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    dropout_p: float,
    seed: int,
) -> torch.Tensor:
    """As `attention`, by the kernels."""
    q, k, v = (_addressable(x, plan.longest) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    kind = _kind(q, v, group, causal, window, softcap, sinks, dropout_p)
    passes = configuration(architecture(q.device), kind, q.dtype)
    tile = _forward_tile(passes, q, k, v)
    work = plan.work(tile.rows, 1 if tile.path == "specialized" else group, tuple(passes.forward_short))
    inputs = [x for x in (q, k, v, sinks) if x is not None]
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    row_items, key_items, backward_counts = None, None, []
    if trains:
        limits = tuple(passes.backward_short)
        by_rows = plan.work(passes.backward_rows.rows, group, limits)
        by_keys = plan.work(passes.backward_keys.keys, 1, limits)
        row_items, key_items, backward_counts = by_rows.items, by_keys.items, [*by_rows.counts, by_keys.counts[0]]
    o: torch.Tensor = _attention(
        q, k, v, sinks, plan.cu_seqlens, plan.sequence_ids, work.items, list(work.counts),
        row_items, key_items, backward_counts, scale, causal, window, softcap, dropout_p, seed, trains,
    )[0]  # fmt: skip
    return o


@torch.library.custom_op("fastvec::attention", mutates_args=())
def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
    sequence_ids: torch.Tensor,
    items: torch.Tensor,
    counts: Sequence[int],
    row_items: torch.Tensor | None,
    key_items: torch.Tensor | None,
    backward_counts: Sequence[int],
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    dropout_p: float,
    seed: int,
    trains: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """-> o [T, H, Dv], and the scores' log2-sum-exp2 [T, H] float32, empty unless it `trains`."""
    T, H, kv_heads = len(q), q.shape[1], k.shape[1]
    kind = _kind(q, v, H // kv_heads, causal, window, softcap, sinks, dropout_p)
    passes = configuration(architecture(q.device), kind, q.dtype)
    rule = _rule(scale, window, softcap, dropout_p, seed)
    o = q.new_empty(T, H, v.shape[2])
    lse = q.new_empty((T, H) if trains else (0,), dtype=torch.float32)
    tensors = (q, k, v, o, lse if trains else None)
    strides, batch = Inputs(*map(_strides, (q, k, v))), Batch(cu_seqlens, items, sequence_ids)
    widths = {"WIDTH": _width(q), "VALUE_WIDTH": _width(v)}
    longer, *classes = counts
    if longer:
        tile = _forward_tile(passes, q, k, v)
        if tile.path == "specialized":
            needs_scratch(q.device)
            launch(
                forward_specialized, (longer, H), *tensors, strides, batch, H, rule, KIND=kind, **_tiled(tile), **widths
            )
        else:
            launch(
                forward.forward_long, (longer, kv_heads), *tensors, sinks, strides, batch, H, rule,
                KIND=kind, **_tiled(tile), **widths,
            )  # fmt: skip
    first = longer
    for tile, count in zip(reversed(passes.forward_short.values()), classes, strict=True):
        if count:
            launch(
                forward.forward_short, (count, kv_heads), *tensors, sinks, strides, batch, first, H, rule,
                KIND=kind, **_tiled(tile), **widths,
            )  # fmt: skip
        first += count
    return o, lse


@_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    trains = others[-1]
    lse = q.new_empty((len(q), q.shape[1]) if trains else (0,), dtype=torch.float32)
    return q.new_empty(len(q), q.shape[1], v.shape[2]), lse


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, sinks, cu_seqlens, sequence_ids, _, _, row_items, key_items, backward_counts, *options, _ = inputs
    ctx.save_for_backward(q, k, v, sinks, *output, cu_seqlens, sequence_ids, row_items, key_items)
    ctx.options = (backward_counts, *options)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, do: torch.Tensor | None, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    nothing = (None,) * 14
    if do is None:
        return None, None, None, None, *nothing
    q, k, v, sinks, *others = ctx.saved_tensors
    dq, dk, dv, delta = _attention_backward(do, q, k, v, sinks, *others, *ctx.options)
    dsinks = None
    if sinks is not None and ctx.needs_input_grad[3]:  # a sink has no value: dS of it is p (0 − delta)
        lse = others[1]
        dsinks = -(torch.exp2(sinks.float() * LOG2E - lse) * delta).sum(0).to(sinks.dtype)
    return dq, dk, dv, dsinks, *nothing


_attention.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("fastvec::attention_backward", mutates_args=())
def _attention_backward(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: torch.Tensor | None,
    o: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens: torch.Tensor,
    sequence_ids: torch.Tensor,
    row_items: torch.Tensor,
    key_items: torch.Tensor,
    counts: Sequence[int],
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    dropout_p: float,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """-> dq, dk, dv as q, k, v, dense; delta [T, H] float32, empty where neither a long sequence nor a sink asks."""
    H, kv_heads = q.shape[1], k.shape[1]
    kind = _kind(q, v, H // kv_heads, causal, window, softcap, sinks, dropout_p)
    passes = configuration(architecture(q.device), kind, q.dtype)
    rule = _rule(scale, window, softcap, dropout_p, seed)
    do = do if do.stride(-1) == 1 else do.contiguous()
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    strides, grads = Inputs(*map(_strides, (q, k, v))), Inputs(*map(_strides, (dq, dk, dv)))
    widths = {"WIDTH": _width(q), "VALUE_WIDTH": _width(v)}
    row_tiles, *classes, key_tiles = counts
    delta = q.new_empty(q.shape[:2] if row_tiles or sinks is not None else (0,), dtype=torch.float32)
    rows = delta.numel()
    if rows:
        launch(
            backward.delta_of, (-(-rows // DELTA_ROWS),), o, do, delta, _strides(do), rows, H,
            SIZE=v.shape[2], WIDTH=widths["VALUE_WIDTH"], ROWS=DELTA_ROWS, num_warps=4,
        )  # fmt: skip
    by_rows, by_keys = (Batch(cu_seqlens, items, sequence_ids) for items in (row_items, key_items))
    if row_tiles:
        launch(
            backward.backward_rows, (row_tiles, kv_heads), q, k, v, do, dq, lse, delta, strides, _strides(do), grads,
            by_rows, H, scale, rule, KIND=kind, **_tiled(passes.backward_rows), **widths,
        )  # fmt: skip
        launch(
            backward.backward_keys, (key_tiles, kv_heads), q, k, v, do, dk, dv, lse, delta, strides, _strides(do),
            grads, by_keys, H, scale, rule, KIND=kind, **_tiled(passes.backward_keys), **widths,
        )  # fmt: skip
    first = row_tiles
    for tile, count in zip(reversed(passes.backward_short.values()), classes, strict=True):
        if count:
            launch(
                backward.backward_short, (count, kv_heads), q, k, v, do, dq, dk, dv, lse, strides, _strides(do), grads,
                by_rows, first, H, scale, rule, KIND=kind, **_tiled(tile), **widths,
            )  # fmt: skip
        first += count
    return dq, dk, dv, delta


@_attention_backward.register_fake
def _(do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:
    sinks, counts = others[0], others[7]
    delta = q.new_empty(q.shape[:2] if counts[0] or sinks is not None else (0,), dtype=torch.float32)
    return (*(x.new_empty(x.shape) for x in (q, k, v)), delta)


def _kind(
    q: torch.Tensor,
    v: torch.Tensor,
    group: int,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    dropout_p: float,
) -> Kind:
    return Kind(
        group=group,
        head_dim=q.shape[2],
        value_dim=v.shape[2],
        causal=causal,
        window=window is not None,
        softcap=softcap is not None,
        sinks=sinks is not None,
        dropout=dropout_p > 0,
        upcast=INTERPRETED and q.dtype == torch.bfloat16,
        precision=_precision(q),
    )


def _precision(q: torch.Tensor) -> str:
    """How float32 is multiplied: exactly on AMD's float32 matrix units, as three tf32 products on NVIDIA's, whose sum
    is as exact as float32 rounding; one tf32 product would lose 13 bits."""
    if q.dtype != torch.float32:
        return "tf32"  # unused
    return "ieee" if str(architecture(q.device)).startswith("gfx") or INTERPRETED else "tf32x3"


def _rule(scale: float, window: int | None, softcap: float | None, dropout_p: float, seed: int) -> Rule:
    cap = softcap or 1.0
    return Rule(
        scale=LOG2E * scale,
        softcap=LOG2E * cap,
        cap_scale=2 * LOG2E * scale / cap,
        window=window or 0,
        seed=seed,
        drop_below=drop_below(dropout_p),
        keep_scale=1 / (1 - dropout_p),
    )


def _forward_tile(passes: Passes, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tile:
    """The first choice for long sequences that these tensors' addresses allow."""
    return next(tile for tile in passes.forward_long if tile.path == "pointer" or fits_descriptors(q, k, v))


def _tiled(tile: Tile) -> dict[str, Any]:
    return {"TILE": tile, "num_warps": tile.warps, "num_stages": tile.stages}


def _strides(x: torch.Tensor) -> Strides:
    return Strides(x.stride(0), x.stride(1))


def _width(x: torch.Tensor) -> int:
    """A head's columns in a tile: a power of two that a matrix product takes."""
    return max(16, next_power_of_2(x.shape[2]))


def _addressable(x: torch.Tensor, longest: int) -> torch.Tensor:
    """`x` with a dense last axis, and its longest sequence inside what an int32 offset reaches."""
    return x if x.stride(2) == 1 and longest * x.stride(0) < 2**31 else x.contiguous()
