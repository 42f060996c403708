"""Attention over packed sequences: o_i = Σ_j softmax_j(s_ij) v_j, where j runs over the tokens of i's own sequence.

    s_ij = scale · q_i·k_j, with a softcap c: c · tanh(s_ij / c)
    window w:    bidirectional |i − j| ≤ w, causal 0 ≤ i − j < w
    sinks:       one logit a head that joins the softmax's denominator and has no value

Shapes: T packed tokens, n sequences, H query heads, Hkv key and value heads (H a multiple of Hkv), D and Dv head sizes.
Query head h reads key and value head h // (H / Hkv).
There is no padding: neighbours of equal length form a run, which is a batch without a copy.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

SCORES_AT_ONCE = 1 << 26  # 256 MiB of float32; a run of 16k tokens at length 512 with 32 heads would take 1 GiB


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionPlan:
    """How a batch is cut into sequences: built once a batch, used by every layer, without waiting for the device."""

    lengths: tuple[int, ...]  # tokens in each sequence, on the host
    cu_seqlens: torch.Tensor  # [n + 1] int32, where each sequence starts, then T
    runs: tuple[tuple[int, int, int], ...]  # (first token, sequences, length): neighbours of equal length

    @classmethod
    def build(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "AttentionPlan":
        """Raises ValueError where there is no sequence, or an empty one."""
        if len(lengths) == 0 or min(lengths) < 1:
            raise ValueError(f"a plan needs sequences of at least one token, got lengths {list(lengths)}")
        cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        runs, first = [], 0
        for length, group in itertools.groupby(lengths):
            sequences = sum(1 for _ in group)
            runs.append((first, sequences, length))
            first += sequences * length
        return cls(lengths=tuple(lengths), cu_seqlens=cu_seqlens.to(device=device, non_blocking=True), runs=tuple(runs))

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


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
) -> torch.Tensor:
    """The definition: one sequence at a time, in float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)  # float64 stays float64, for gradcheck
    group = q.shape[1] // k.shape[1]
    outputs = []
    for begin, end in itertools.pairwise([0, *itertools.accumulate(plan.lengths)]):
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
        probabilities = scores.softmax(dim=-1)[..., : end - begin]  # the sink takes its share and gives no value
        outputs.append((probabilities @ v_own).transpose(0, 1))
    return torch.cat(outputs).to(q.dtype)


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
) -> torch.Tensor:
    """Attend from `q` [T, H, D] to `k` [T, Hkv, D] and `v` [T, Hkv, Dv] inside each sequence of `plan` -> [T, H, Dv].

    Any strides, any floating dtype (one for q, k and v); `sinks` [H]; `window` and `softcap` as in the formula above.
    Raises ValueError where shapes, dtypes or the plan do not fit together.
    """
    _check(q, k, v, plan, window, softcap, sinks)
    plain = softcap is not None or sinks is not None  # SDPA has neither
    outputs = []
    for first, sequences, length in plan.runs:
        own = slice(first, first + sequences * length)
        q_run, k_run, v_run = (  # [sequences, heads, length, size]: views, whatever the strides
            x[own].view(sequences, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)
        )
        narrow = window is not None and window < (length if causal else length - 1)
        visible = _visible(length, causal, window, q.device) if narrow or (plain and causal) else None
        if plain:
            o = _plain_attention(q_run, k_run, v_run, visible, scale, softcap, sinks)
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
        outputs.append(o.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _visible(length: int, causal: bool, window: int | None, device: torch.device) -> torch.Tensor:
    """[length, length] bool: whether token i (row) sees token j."""
    i = torch.arange(length, device=device)
    behind = i[:, None] - i[None, :]
    if window is None:
        return behind >= 0 if causal else torch.ones_like(behind, dtype=torch.bool)
    return (behind >= 0) & (behind < window) if causal else behind.abs() <= window


def _plain_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One run, q [g, H, L, D], k and v [g, Hkv, L, D or Dv]: matrix products with the scores in memory."""
    heads, length = q.shape[1:3]
    wide = torch.promote_types(q.dtype, torch.float32)
    outputs = []
    step = max(1, SCORES_AT_ONCE // (heads * length * length))
    for q_part, k_part, v_part in zip(*(torch.split(x, step) for x in (q, k, v)), strict=True):
        q_grouped = q_part.unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # [step, Hkv, G·L, D]: K and V as they are
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
        grouped = probabilities.to(v.dtype).reshape((*q_grouped.shape[:-1], length))
        outputs.append((grouped @ v_part).view(len(q_part), heads, length, -1))
    return torch.cat(outputs)


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 3 or q.shape[2] != k.shape[2] or k.shape[1] != v.shape[1]:
        raise ValueError(f"attention needs q [T, H, D], k [T, Hkv, D] and v [T, Hkv, Dv], got {shapes}")
    if not len(q) == len(k) == len(v) == plan.tokens:
        raise ValueError(f"attention needs the plan's {plan.tokens} tokens, got {shapes}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"attention needs a multiple of {k.shape[1]} key heads as query heads, got {q.shape[1]}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention needs one dtype, got q {q.dtype}, k {k.dtype}, v {v.dtype}")
    if sinks is not None and sinks.shape != q.shape[1:2]:
        raise ValueError(f"attention needs one sink for each of {q.shape[1]} heads, got {tuple(sinks.shape)}")
    if window is not None and window < 1:
        raise ValueError(f"attention needs a window of at least one token, got {window}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"attention needs a positive softcap, got {softcap}")
