"""Attention on a CPU by matrix products: for bfloat16 without AMX, where SDPA is slow, and for many short sequences.

Sequences of similar length form a group, padded inside this module to one length, a multiple of `MULTIPLE`. A group is
two batched products with a softmax between them, in place, over as many heads at a time as have scores that fit into
the caches, but at least one for each thread. Padding costs a pass over q, k, v and o; equal lengths need none.

For inference: no gradient is recorded.

Shapes: n sequences of a group, L its padded length, H heads of q, KV of k and of v, G = H / KV, D head size.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from fastvec_kernels.attention.plan import AttentionPlan, visible_tokens

MULTIPLE = 16  # odd lengths are slower, and oneDNN compiles a product for each length
WIDEST_SPREAD = 0.125  # of a group's padded length, the most that a sequence may be shorter
SCORE_BYTES = 4 << 20
LONGEST = 2048  # a head's scores no longer fit into the caches; SDPA computes them in tiles


class Group(NamedTuple):
    """Sequences padded to one length."""

    sequences: int
    length: int  # L
    rows: torch.Tensor | None  # [n · L] the token in each row; None if the tokens are adjacent and nothing is padded
    first: int  # the first token, if rows is None
    bias: torch.Tensor | None  # [n, 1, L] float32: −inf at padding; None if nothing is padded


class Grouping(NamedTuple):
    """The groups of a batch. `places` [T] is the row of each token in all groups' rows; None if they are the tokens."""

    groups: tuple[Group, ...]
    places: torch.Tensor | None


@lru_cache(maxsize=16)
def group(lengths: tuple[int, ...]) -> Grouping:
    """Return the groups of sequences of `lengths`; cached, as one layer after another asks."""
    array = np.array(lengths, dtype=np.int64)
    starts = np.cumsum(array) - array
    order = np.argsort(-array, kind="stable")
    groups, places, begin, first_row = [], np.empty(int(array.sum()), dtype=np.int64), 0, 0
    while begin < len(order):
        longest = int(array[order[begin]])
        padded = -(-longest // MULTIPLE) * MULTIPLE
        least = padded - max(MULTIPLE, int(padded * WIDEST_SPREAD))
        end = begin + int(np.searchsorted(-array[order[begin:]], -least, side="right"))
        members = order[begin:end]
        own = array[members]
        if (own[-1] == longest and longest % 8 == 0) or longest == 1:
            padded = longest
        places_in_group = np.arange(padded)
        inside = places_in_group < own[:, None]
        # padding repeats a sequence's last token, so that its numbers are finite
        rows = (starts[members, None] + np.minimum(places_in_group, own[:, None] - 1)).ravel()
        places[rows[inside.ravel()]] = first_row + np.flatnonzero(inside)
        adjacent = bool(inside.all() and (np.diff(rows) == 1).all())
        bias = None if inside.all() else torch.from_numpy(np.where(inside, 0, -np.inf).astype(np.float32))
        groups.append(
            Group(
                sequences=len(members),
                length=padded,
                rows=None if adjacent else torch.from_numpy(rows),
                first=int(rows[0]),
                bias=None if bias is None else bias[:, None],
            )
        )
        begin, first_row = end, first_row + len(rows)
    in_order = first_row == len(places) and bool((np.diff(places) == 1).all())
    return Grouping(tuple(groups), None if in_order else torch.from_numpy(places))


def attention_padded(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """Attend from q [T, H, D] to k [T, KV, D] and v [T, KV, Dv]; scores are rounded to their dtype."""
    grouping = group(plan.lengths)
    rows = sum(one.sequences * one.length for one in grouping.groups)
    o = q.new_empty(rows, q.shape[1], v.shape[2])
    begin = 0
    for one in grouping.groups:
        end = begin + one.sequences * one.length
        shape = (one.sequences, one.length)
        # [n · KV, G · L, D]: one matrix for each head of k, with the queries of all heads that share it
        q_group, k_group, v_group = (
            _rows(x, one).view(*shape, k.shape[1], -1, x.shape[2]).permute(0, 2, 3, 1, 4).flatten(0, 1).flatten(1, 2)
            for x in (q, k, v)
        )
        cuts = causal or (window is not None and window < one.length - 1)
        hidden = _hidden(one.length, causal, window, q.dtype) if cuts else None
        attended = _attend(q_group, k_group, v_group, one, scale, hidden)
        by_head = attended.view(one.sequences, k.shape[1], -1, one.length, v.shape[2]).permute(0, 3, 1, 2, 4)
        o[begin:end].view(by_head.shape).copy_(by_head)
        begin = end
    return o if grouping.places is None else o.index_select(0, grouping.places)


@lru_cache(maxsize=4)
def _hidden(length: int, causal: bool, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Return [L, L], −inf where token i (row) does not see token j, else 0; cached, as all layers of a batch ask."""
    seen = visible_tokens(length, causal, window, torch.device("cpu"))
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)


def _rows(x: torch.Tensor, one: Group) -> torch.Tensor:
    if one.rows is None:
        return x[one.first : one.first + one.sequences * one.length]
    return x.index_select(0, one.rows)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, one: Group, scale: float, hidden: torch.Tensor | None
) -> torch.Tensor:
    """Attend in a group: q [n · KV, G · L, D], k and v [n · KV, L, D] -> [n · KV, G · L, Dv].

    `hidden` [L, L] is added to the scores.
    """
    rows, kv_heads = q.shape[1], len(q) // one.sequences
    o = q.new_empty(len(q), rows, v.shape[2])
    step = max(torch.get_num_threads(), SCORE_BYTES // (rows * one.length * q.itemsize))
    scores = q.new_empty(min(step, len(q)), rows, one.length)
    # in the scores' dtype: torch adds float32 to bfloat16 many times as slowly as bfloat16
    bias = None if one.bias is None else one.bias.to(q.dtype).repeat_interleave(kv_heads, dim=0)
    for begin in range(0, len(q), step):
        part = slice(begin, begin + step)
        own = scores[: len(q[part])]
        torch.baddbmm(own, q[part], k[part].transpose(1, 2), beta=0, alpha=scale, out=own)
        if bias is not None:
            own.add_(bias[part])
        if hidden is not None:
            own.view(len(own), -1, *hidden.shape).add_(hidden)
        torch.softmax(own, -1, out=own)
        torch.bmm(own, v[part], out=o[part])
    return o
