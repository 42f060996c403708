"""Attention by PyTorch operations, for tensors that the Triton kernels do not take, e.g. on a machine without a GPU.

On a GPU, PyTorch's own attention over packed sequences takes what it can. A CPU takes the plan's route. On the route
"runs", adjacent sequences of equal length form a run, a batch without padding, which SDPA takes as a view, not a copy.
"""

import inspect
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from fastvec_kernels._launch import records_gradient
from fastvec_kernels._random import keeps_of_columns, philox
from fastvec_kernels.attention.padded import LONGEST, attention_padded
from fastvec_kernels.attention.plan import AttentionPlan, Route, Routes, check_tokens, visible_tokens

SCORES_AT_ONCE = 1 << 26  # 256 MiB of float32; a run of 16k tokens at length 512 with 32 heads would take 1 GiB
# Training in bfloat16 on a CPU: up to this length, matrix products with the scores in memory are faster than SDPA (one
# core with AVX-512 instructions for bfloat16; at 512 tokens equally fast forward plus backward).
PLAIN_LENGTH = 512
# Below this many multiplications in a run, bfloat16 is slower than float32: oneDNN compiles a bfloat16 product again
# for each shape that is not among its last 16, in about 0.3 ms.
NARROW_PRODUCTS = 10_000_000


def attention_torch(
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
    """Compute `attention` by `varlen_attn` or run by run."""
    check_tokens(plan.tokens, len(q))
    plain_softmax = softcap is None and sinks is None and dropout_p == 0
    if q.is_cuda and plain_softmax and _fits_varlen(q, v):
        return varlen_attention(q, k, v, plan, scale, causal, window)
    records, cpu = records_gradient(q, k, v), q.device.type == "cpu"
    inference = cpu and plain_softmax and not records and not torch.compiler.is_compiling()
    if inference and route_of(max(plan.lengths), q.dtype, plan.routes) == "padded":
        return attention_padded(q, k, v, plan, scale, causal, window)
    narrow_cpu = q.dtype == torch.bfloat16 and cpu and not inference
    # one split, not one slice per run: the gradient of a slice is as large as the batch
    parts = (torch.split(x, [sequences * length for _, sequences, length in plan.runs]) for x in (q, k, v))
    outputs, first_sequence = [], 0
    for (_, sequences, length), *tensors in zip(plan.runs, *parts, strict=True):
        narrow = narrow_cpu and sequences * q.shape[1] * length**2 * q.shape[2] >= NARROW_PRODUCTS
        plain = not plain_softmax or (narrow and length <= PLAIN_LENGTH)  # SDPA has no cap, sink or keyed dropout
        if narrow_cpu and not narrow:
            tensors = [x.float() for x in tensors]
        q_run, k_run, v_run = (  # [sequences, heads, length, size]: views, whatever the strides
            x.view(sequences, length, *x.shape[1:]).transpose(1, 2) for x in tensors
        )
        cuts = window is not None and window < (length if causal else length - 1)
        visible = visible_tokens(length, causal, window, q.device) if cuts or (plain and causal) else None
        if plain:
            ids = plan.sequence_ids[first_sequence : first_sequence + sequences]
            o = _plain_attention(q_run, k_run, v_run, visible, scale, softcap, sinks, ids, dropout_p, seed)
        else:
            o = F.scaled_dot_product_attention(
                q_run,
                k_run,
                v_run,
                attn_mask=visible,
                is_causal=causal and visible is None,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        outputs.append(o.transpose(1, 2).flatten(0, 1).to(q.dtype))
        first_sequence += sequences
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def route_of(longest: int, dtype: torch.dtype, routes: Routes | None = None) -> Route:
    """Return the route of a batch whose longest sequence has `longest` tokens, by `routes` or else the defaults."""
    own = default_routes(dtype) if routes is None else routes
    return next((route for limit, route in own if longest <= limit), "runs")


@lru_cache
def default_routes(dtype: torch.dtype) -> Routes:
    """Return the routes that are taken unless others are measured.

    SDPA is fast in float32, and in bfloat16 only with AMX, for sequences that fill its tiles (2 cores of a Xeon with
    AMX and of a Zen 5 without).
    """
    if dtype != torch.bfloat16:
        return ()
    return ((64 if torch.cpu._is_amx_tile_supported() else LONGEST, "padded"),)


@lru_cache
def _varlen_has_windows() -> bool:
    """Return whether `varlen_attn` has what `varlen_attention` calls it with; not in torch 2.10."""
    from torch.nn.attention import varlen

    attend: Any = varlen.varlen_attn
    return {"scale", "window_size"} <= inspect.signature(attend).parameters.keys()


def _fits_varlen(q: torch.Tensor, v: torch.Tensor) -> bool:
    """Return whether `varlen_attn`, which is FlashAttention, has kernels for these heads on this GPU."""
    half = q.dtype in (torch.float16, torch.bfloat16) and torch.cuda.get_device_capability(q.device) >= (8, 0)
    return half and _varlen_has_windows() and q.shape[2] == v.shape[2] <= 256 and q.shape[2] % 8 == 0


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """Compute `attention` by one call of PyTorch's `varlen_attn` (torch ≥ 2.11)."""
    from torch.nn.attention import varlen

    attend: Any = varlen.varlen_attn  # its signature differs between versions
    longest = max(plan.lengths)
    reach = -1 if window is None else window - 1 if causal else window  # keys before a query, -1: all
    options: dict[str, Any] = {"scale": scale, "window_size": (reach, 0 if causal else reach)}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in inspect.signature(attend).parameters:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    inputs = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    o: torch.Tensor = attend(*inputs, plan.cu_seqlens, plan.cu_seqlens, longest, longest, **options)
    return o


def dropout_keeps(seed: int, sequence_ids: torch.Tensor, heads: int, length: int, p: float) -> torch.Tensor:
    """Return a mask [n, heads, length, length] for n sequences of `length` tokens: whether query i (row) keeps key j.

    The random bits of a row depend on its sequence id, head and query, those of a column on the key's position.
    """
    device = sequence_ids.device
    places = sequence_ids.to(torch.int64)[:, None, None], torch.arange(heads, device=device)[None, :, None]
    queries = torch.arange(length, device=device)
    counter = torch.broadcast_tensors(*places, queries, queries * 0)
    first, second, _, _ = philox(counter, seed)
    return keeps_of_columns(first, second, length, p)


def _plain_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    sequence_ids: torch.Tensor,
    dropout_p: float,
    seed: int,
) -> torch.Tensor:
    """Attend in one run, q [g, H, L, D], k and v [g, Hkv, L, D or Dv], by products with the scores in memory."""
    heads, length = q.shape[1:3]
    wide = torch.promote_types(q.dtype, torch.float32)
    outputs = []
    step = max(1, SCORES_AT_ONCE // (heads * length * length))
    for q_part, k_part, v_part, ids in zip(*(torch.split(x, step) for x in (q, k, v, sequence_ids)), strict=True):
        q_grouped = q_part.unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # [step, Hkv, G·L, D]: no copies of K and V
        scores = (scale * (q_grouped @ k_part.transpose(2, 3)).to(wide)).view(-1, heads, length, length)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        if sinks is not None:
            column = sinks.to(wide)[:, None, None].expand(len(q_part), heads, length, 1)
            probabilities = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
        else:
            probabilities = scores.softmax(dim=-1)
        if dropout_p > 0:
            keeps = dropout_keeps(seed, ids, heads, length, dropout_p)
            probabilities = probabilities * keeps / (1 - dropout_p)
        grouped = probabilities.to(v.dtype).reshape((*q_grouped.shape[:-1], length))
        outputs.append((grouped @ v_part).view(len(q_part), heads, length, -1))
    return torch.cat(outputs)
