"""Attention over packed sequences: o_i = Σ_j softmax_j(s_ij) v_j, where j runs over the tokens of i's own sequence.

    s_ij = scale · q_i·k_j, with a softcap c: c · tanh(s_ij / c)
    window w:    bidirectional |i − j| ≤ w, causal 0 ≤ i − j < w
    sinks:       one logit per head that is added to the softmax's denominator and has no value
    dropout p:   each softmax_j is dropped with probability p, else divided by 1 − p

Shapes: T packed tokens, n sequences, H query heads, Hkv key and value heads (H a multiple of Hkv), D and Dv head sizes.
Query head h reads key and value head h // (H / Hkv).
There is no padding. On a GPU fastvec's Triton kernels run (`op.py` launches those of `forward.py`, `specialized.py` and
`backward.py`), except for float64 and for heads wider than their tiles; otherwise PyTorch operations (`torch_ops.py`).
"""

import itertools
from collections.abc import Callable

import torch

from fastvec_kernels._switch import op, uses_kernel
from fastvec_kernels.attention.configs import widest_head
from fastvec_kernels.attention.op import attention_triton
from fastvec_kernels.attention.plan import AttentionPlan
from fastvec_kernels.attention.torch_ops import attention_torch, dropout_keeps

__all__ = ["AttentionPlan", "attention", "attention_reference"]


def attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> torch.Tensor:
    """Reference implementation: one sequence at a time, in float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)  # float64 stays float64, for gradcheck
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    outputs = []
    for index, (begin, end) in enumerate(itertools.pairwise([0, *itertools.accumulate(plan.lengths)])):
        q_own = q[begin:end].transpose(0, 1).to(wide)  # [H, L, D]
        k_own = k[begin:end].transpose(0, 1).to(wide).repeat_interleave(group, dim=0)
        v_own = v[begin:end].transpose(0, 1).to(wide).repeat_interleave(group, dim=0)
        scores = scale * q_own @ k_own.transpose(1, 2)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        i = torch.arange(end - begin, device=q.device)[:, None]
        j = torch.arange(end - begin, device=q.device)[None, :]
        if causal:
            scores = scores.masked_fill(j > i, -torch.inf)
        if window is not None:
            scores = scores.masked_fill(i - j >= window if causal else (i - j).abs() > window, -torch.inf)
        if sinks is not None:
            sink_column = sinks.to(wide)[:, None, None].expand(-1, end - begin, 1)
            scores = torch.cat([scores, sink_column], dim=-1)
        probabilities = scores.softmax(dim=-1)[..., : end - begin]  # the sink has a share but no value
        if dropout_p > 0:
            keeps = dropout_keeps(seed, plan.sequence_ids[index : index + 1], heads, end - begin, dropout_p)[0]
            probabilities = probabilities * keeps / (1 - dropout_p)
        outputs.append((probabilities @ v_own).transpose(0, 1))
    return torch.cat(outputs).to(q.dtype)


@op("attention", attention_reference)
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> torch.Tensor:
    """Attend from `q` to `k` and `v` inside each sequence of `plan` -> [T, H, Dv] of their dtype.

    Args:
        q: Queries [T, H, D]. q, k and v may have any strides and any floating dtype, the same for all three.
        k: Keys [T, Hkv, D].
        v: Values [T, Hkv, Dv].
        plan: The sequences of the packed batch.
        scale: Factor of q·k, positive.
        causal: Whether a token sees only itself and earlier tokens.
        window: Window in tokens, as in the formula above; unlimited if omitted.
        softcap: Cap of the scores, as in the formula above.
        sinks: One logit per head, [H].
        dropout_p: Probability of dropout, in [0, 1). Dropout depends only on `seed`, the plan's sequence id, head,
            query and key, not on the batch or the device.
        seed: From 0 to 2^63 − 1. Each layer and each call should have its own.

    Raises:
        ValueError: If shapes, dtypes, options or the plan do not fit together.
    """
    _check(q, k, v, scale, window, softcap, sinks, dropout_p, seed)
    kernels = uses_kernel("attention", q) and max(q.shape[2], v.shape[2]) <= widest_head(q.dtype)
    way: Callable[..., torch.Tensor] = attention_triton if kernels else attention_torch
    options = {
        "scale": scale,
        "causal": causal,
        "window": window,
        "softcap": softcap,
        "sinks": sinks,
        "dropout_p": dropout_p,
        "seed": seed,
    }
    if not torch.is_autocast_enabled(q.device.type):
        return way(q, k, v, plan, **options)
    with torch.autocast(q.device.type, enabled=False):  # the inputs determine the dtype
        return way(q, k, v, plan, **options)


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    dropout_p: float,
    seed: int,
) -> None:
    def shapes() -> str:  # only on failure: torch.compile would treat a printed size as a constant
        return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"

    if not q.ndim == k.ndim == v.ndim == 3 or q.shape[2] != k.shape[2] or k.shape[1] != v.shape[1]:
        raise ValueError(f"attention needs q [T, H, D], k [T, Hkv, D] and v [T, Hkv, Dv], got {shapes()}")
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        raise ValueError(f"attention needs the same number of tokens in q, k and v, got {shapes()}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"attention needs query heads in a multiple of the {k.shape[1]} key heads, got {q.shape[1]}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention needs the same dtype for q, k and v, got q {q.dtype}, k {k.dtype}, v {v.dtype}")
    check_options(q.shape[1], scale, window, softcap, sinks)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"attention needs a dropout probability of at least 0 and below 1, got {dropout_p}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"attention needs a seed from 0 to 2^63 - 1, got {seed}")


def check_options(
    heads: int, scale: float, window: int | None, softcap: float | None, sinks: torch.Tensor | None
) -> None:
    """Raise ValueError for options outside their ranges."""
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"attention needs one sink for each of {heads} heads, got {tuple(sinks.shape)}")
    if not scale > 0:
        raise ValueError(f"attention needs a positive scale, got {scale}")
    if window is not None and window < 1:
        raise ValueError(f"attention needs a window of at least one token, got {window}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"attention needs a positive softcap, got {softcap}")
