"""Attention as custom operators: kernel launches, and registration with autograd and torch.compile.

Shapes: T packed tokens, n sequences, H query heads, Hkv key and value heads, D and Dv head sizes.
Short sequences are in classes by length. Each direction launches its long kernels once, for the sequences longer than
every class, and its short kernel once for each class that has sequences. All decisions that depend on the batch's
lengths are made inside the operators, which torch.compile does not trace, so a compiled model serves every batch.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from fastvec_kernels._launch import (
    INTERPRETED,
    architecture,
    call,
    launch,
    next_power_of_2,
    operator,
    set_descriptor_allocator,
)
from fastvec_kernels._random import drop_below
from fastvec_kernels.attention import backward, forward
from fastvec_kernels.attention.configs import Passes, configuration
from fastvec_kernels.attention.parts import Batch, Inputs, Kind, ScoreParameters, Strides, Tile
from fastvec_kernels.attention.plan import AttentionPlan, Lengths, check_tokens, lengths_of, list_programs
from fastvec_kernels.attention.specialized import fits_descriptors, forward_specialized

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
    """Compute `attention` by the Triton kernels."""
    batch = (plan.host_lengths, plan.cu_seqlens, plan.sequence_ids)
    sinks = None if sinks is None else sinks.contiguous()
    o: torch.Tensor = call(_attention, q, k, v, sinks, *batch, scale, causal, window, softcap, dropout_p, seed)[0]
    return o


class _Prepared(NamedTuple):
    """A call of an operator: its inputs with strides that the kernels accept, and what `choose` returned for them."""

    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # q, k, v
    strides: Inputs
    lengths: Lengths
    kind: Kind
    rule: ScoreParameters
    passes: Passes
    widths: dict[str, int]  # columns of a head in a tile


def _prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: torch.Tensor | None,
    host_lengths: torch.Tensor,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    dropout_p: float,
    seed: int,
) -> _Prepared:
    lengths = lengths_of(host_lengths)
    check_tokens(lengths.tokens, q.shape[0])
    sizes = (q.shape[1] // k.shape[1], q.shape[2], v.shape[2])
    kind, rule, passes = choose(q, lengths, sizes, scale, causal, window, softcap, sinks is not None, dropout_p)
    (q, q_strides), (k, k_strides), (v, v_strides) = (_addressable(x, lengths.longest) for x in (q, k, v))
    return _Prepared(
        inputs=(q, k, v),
        strides=Inputs(q_strides, k_strides, v_strides),
        lengths=lengths,
        kind=kind,
        rule=rule._replace(seed=seed) if seed else rule,
        passes=passes,
        widths={"WIDTH": _width(kind.head_dim), "VALUE_WIDTH": _width(kind.value_dim)},
    )


def choose(
    x: torch.Tensor,
    lengths: Lengths,
    sizes: tuple[int, int, int],
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sinks: bool,
    dropout_p: float,
) -> tuple[Kind, ScoreParameters, Passes]:
    """Return what the kernels are launched with for inputs like `x` and `sizes` (group, head_dim, value_dim)."""
    if window is not None and window >= lengths.longest - (0 if causal else 1):
        window = None  # it excludes no key
    target = architecture(x.device)
    kind, rule = _settle(target, x.dtype, sizes, scale, causal, window, softcap, sinks, dropout_p)
    return kind, rule, configuration(target, kind, x.dtype)


@lru_cache(maxsize=64)
def _settle(
    target: str | None,
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sinks: bool,
    dropout_p: float,
) -> tuple[Kind, ScoreParameters]:
    """Return kind and rule (with seed 0): they follow from options and sizes, once for all layers alike."""
    group, head_dim, value_dim = sizes
    kind = Kind(
        group=group,
        head_dim=head_dim,
        value_dim=value_dim,
        causal=causal,
        window=window is not None,
        softcap=softcap is not None,
        sinks=sinks,
        dropout=dropout_p > 0,
        upcast=INTERPRETED and dtype == torch.bfloat16,
        precision=_precision(dtype, target),
    )
    cap = softcap or 1.0
    rule = ScoreParameters(
        scale=LOG2E * scale,
        softcap=LOG2E * cap,
        cap_scale=2 * LOG2E * scale / cap,
        window=window or 0,
        seed=0,
        drop_below=drop_below(dropout_p),
        keep_scale=1 / (1 - dropout_p),
    )
    return kind, rule


@operator("fastvec::attention")
def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: torch.Tensor | None,
    host_lengths: torch.Tensor,
    cu_seqlens: torch.Tensor,
    sequence_ids: torch.Tensor,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    dropout_p: float,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return o [T, H, Dv] and, for the backward pass, the log2-sum-exp2 of the scores [T, H] float32."""
    call = _prepare(q, k, v, sinks, host_lengths, scale, causal, window, softcap, dropout_p, seed)
    H, kv_heads = q.shape[1], k.shape[1]
    o = q.new_empty(q.shape[0], H, v.shape[2])
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    tensors = (*call.inputs, o, lse)
    classes = call.passes.forward_short
    tile = _forward_tile(call)
    specialized = tile.path == "specialized"
    work = list_programs(call.lengths, q.device, tile.rows, 1 if specialized else call.kind.group, tuple(classes))
    batch = Batch(cu_seqlens, work.items, sequence_ids)
    long = work.counts[0]
    if long and specialized:
        set_descriptor_allocator(q.device)
        launch(
            forward_specialized, (long, H), *tensors, call.strides, batch, H, call.rule,
            KIND=call.kind, **tiled(tile), **call.widths,
        )  # fmt: skip
    elif long:
        launch(
            forward.forward_long, (long, kv_heads), *tensors, sinks, call.strides, batch, H, call.rule,
            KIND=call.kind, **tiled(tile), **call.widths,
        )  # fmt: skip
    for tile, first, count in work.by_class(classes):
        launch(
            forward.forward_short, (count, kv_heads), *tensors, sinks, call.strides, batch, first, H, call.rule,
            KIND=call.kind, **tiled(tile), **call.widths,
        )  # fmt: skip
    return o, lse


@_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty(*q.shape[:2], v.shape[2]), q.new_empty(q.shape[:2], dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, sinks, host_lengths, cu_seqlens, sequence_ids, *options = inputs
    ctx.save_for_backward(q, k, v, sinks, *output, host_lengths, cu_seqlens, sequence_ids)
    ctx.options = options
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, do: torch.Tensor | None, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    nothing = (None,) * 9
    if do is None:
        return None, None, None, None, *nothing
    q, k, v, sinks, *others = ctx.saved_tensors
    dq, dk, dv, delta = _attention_backward(do, q, k, v, sinks, *others, *ctx.options)
    dsinks = None
    if sinks is not None and ctx.needs_input_grad[3]:  # a sink has no value: its dS is p (0 − delta)
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
    host_lengths: torch.Tensor,
    cu_seqlens: torch.Tensor,
    sequence_ids: torch.Tensor,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    dropout_p: float,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return dq, dk and dv, dense, and delta [T, H] float32, filled only if there are long sequences or sinks."""
    call = _prepare(q, k, v, sinks, host_lengths, scale, causal, window, softcap, dropout_p, seed)
    H, kv_heads = q.shape[1], k.shape[1]
    do = do if do.stride(-1) == 1 else do.contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    inputs, grads = (*call.inputs, do), Inputs(*map(_strides, (dq, dk, dv)))
    strides = (call.strides, _strides(do), grads)
    by_rows, by_keys = call.passes.backward_rows, call.passes.backward_keys
    classes = call.passes.backward_short
    work = list_programs(call.lengths, q.device, by_rows.rows, call.kind.group, tuple(classes))
    batch = Batch(cu_seqlens, work.items, sequence_ids)
    long = work.counts[0]
    delta = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if long or sinks is not None:
        rows = delta.numel()
        launch(
            backward.delta_of, (-(-rows // DELTA_ROWS),), o, do, delta, _strides(do), rows, H,
            SIZE=v.shape[2], WIDTH=call.widths["VALUE_WIDTH"], ROWS=DELTA_ROWS, num_warps=4,
        )  # fmt: skip
    if long:
        launch(
            backward.backward_rows, (long, kv_heads), *inputs, dq, lse, delta, *strides, batch, H, scale, call.rule,
            KIND=call.kind, **tiled(by_rows), **call.widths,
        )  # fmt: skip
        key_work = list_programs(call.lengths, q.device, by_keys.keys, 1, tuple(classes))
        launch(
            backward.backward_keys, (key_work.counts[0], kv_heads), *inputs, dk, dv, lse, delta, *strides,
            batch._replace(items=key_work.items), H, scale, call.rule,
            KIND=call.kind, **tiled(by_keys), **call.widths,
        )  # fmt: skip
    for tile, first, count in work.by_class(classes):
        launch(
            backward.backward_short, (count, kv_heads), *inputs, dq, dk, dv, lse, *strides, batch, first, H, scale,
            call.rule, KIND=call.kind, **tiled(tile), **call.widths,
        )  # fmt: skip
    return dq, dk, dv, delta


@_attention_backward.register_fake
def _(do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_others: Any) -> tuple[torch.Tensor, ...]:
    delta = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    return (*(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)), delta)


def _precision(dtype: torch.dtype, target: str | None) -> str:
    """Return the input precision of float32 products.

    AMD's matrix units multiply float32 exactly. NVIDIA's take three tf32 products, whose sum is as accurate as float32
    rounding; one tf32 product would lose 13 bits.
    """
    if dtype != torch.float32:
        return "tf32"  # unused
    return "ieee" if str(target).startswith("gfx") or INTERPRETED else "tf32x3"


def _forward_tile(call: _Prepared) -> Tile:
    """Return the first tile for long sequences that the tensors' addresses and strides allow."""
    tiles = call.passes.forward_long
    return next(tile for tile in tiles if tile.path == "pointer" or fits_descriptors(*call.inputs))


@lru_cache(maxsize=64)
def tiled(tile: Tile) -> dict[str, Any]:
    return {"TILE": tile, "num_warps": tile.warps, "num_stages": tile.stages}


def _strides(x: torch.Tensor) -> Strides:
    return Strides(x.stride(0), x.stride(1))


def _width(size: int) -> int:
    """Return the columns of a head in a tile: a power of two, and at least the 16 that a matrix product needs."""
    return max(16, next_power_of_2(size))


def _addressable(x: torch.Tensor, longest: int) -> tuple[torch.Tensor, Strides]:
    """Return `x` if its last axis is dense and int32 offsets reach all of a sequence, else a copy; and its strides."""
    token, head, last = x.stride()
    if last != 1 or longest * token + x.shape[1] * head >= 2**31:
        x = x.contiguous()
        token, head, _ = x.stride()
    return x, Strides(token, head)
