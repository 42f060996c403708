"""Attention on PyTorch's operations: what a machine without a GPU runs.

Neighbours of equal length form a run, which is a batch without a copy: SDPA takes it as it is.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from fastvec_kernels._attention_plan import AttentionPlan, check_tokens

SCORES_AT_ONCE = 1 << 26  # 256 MiB of float32; a run of 16k tokens at length 512 with 32 heads would take 1 GiB
WORD = 0xFFFFFFFF


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
    """As `attention`, run by run."""
    check_tokens(plan.tokens, len(q))
    plain = softcap is not None or sinks is not None or dropout_p > 0  # SDPA has no cap, no sink, no keyed dropout
    outputs, first_sequence = [], 0
    for first, sequences, length in plan.runs:
        own = slice(first, first + sequences * length)
        q_run, k_run, v_run = (  # [sequences, heads, length, size]: views, whatever the strides
            x[own].view(sequences, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)
        )
        narrow = window is not None and window < (length if causal else length - 1)
        visible = _visible(length, causal, window, q.device) if narrow or (plain and causal) else None
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
        outputs.append(o.transpose(1, 2).flatten(0, 1))
        first_sequence += sequences
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def philox(counter: Sequence[torch.Tensor], seed: int) -> list[torch.Tensor]:
    """Philox-4x32-10 (Salmon et al., 2011): four random words, int64 below 2^32, of four such counters of one shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & WORD, seed >> 32 & WORD
    for _ in range(10):
        wide0, wide2 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # 64 bits that wrap; the halves are right all the same
        c0, c1, c2, c3 = (wide2 >> 32 & WORD) ^ c1 ^ k0, wide2 & WORD, (wide0 >> 32 & WORD) ^ c3 ^ k1, wide0 & WORD
        k0, k1 = k0 + 0x9E3779B9 & WORD, k1 + 0xBB67AE85 & WORD
    return [c0, c1, c2, c3]


def dropout_keeps(seed: int, sequence_ids: torch.Tensor, heads: int, length: int, p: float) -> torch.Tensor:
    """[n, heads, length, length] bool: whether query i (row) keeps key j, of n sequences of one length.

    Philox of (sequence, head, query) gives each row two words, and a mix of these with the key's place gives each key
    32 bits: the key is dropped where the upper 24 are below p · 2^24.
    Philox for every pair would be exact too, and costs ten rounds of wide products an entry instead of two products.
    """
    device = sequence_ids.device
    places = sequence_ids.to(torch.int64)[:, None, None], torch.arange(heads, device=device)[None, :, None]
    queries = torch.arange(length, device=device)
    counter = torch.broadcast_tensors(*places, queries, queries * 0)
    first, second, _, _ = philox(counter, seed)
    return keeps_of_columns(first, second, length, p)


def keeps_of_columns(first: torch.Tensor, second: torch.Tensor, columns: int, p: float) -> torch.Tensor:
    """[..., columns] bool: whether each column is kept, from two random words [...] of each row."""
    x = first[..., None] + torch.arange(columns, device=first.device) * 0x9E3779B9 & WORD
    x = (x ^ x >> 16) * 0x21F0AAAD & WORD  # the constants of a 32-bit mixer without bias (Wellons, 2018)
    x = x ^ second[..., None]
    x = (x ^ x >> 15) * 0x735A2D97 & WORD
    return (x ^ x >> 15) >> 8 >= drop_below(p)


def drop_below(p: float) -> int:
    """The 24-bit threshold of a dropout probability."""
    return round(p * (1 << 24))


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
    sequence_ids: torch.Tensor,
    dropout_p: float,
    seed: int,
) -> torch.Tensor:
    """One run, q [g, H, L, D], k and v [g, Hkv, L, D or Dv]: matrix products with the scores in memory."""
    heads, length = q.shape[1:3]
    wide = torch.promote_types(q.dtype, torch.float32)
    outputs = []
    step = max(1, SCORES_AT_ONCE // (heads * length * length))
    for q_part, k_part, v_part, ids in zip(*(torch.split(x, step) for x in (q, k, v, sequence_ids)), strict=True):
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
        if dropout_p > 0:
            keeps = dropout_keeps(seed, ids, heads, length, dropout_p)
            probabilities = probabilities * keeps / (1 - dropout_p)
        grouped = probabilities.to(v.dtype).reshape((*q_grouped.shape[:-1], length))
        outputs.append((grouped @ v_part).view(len(q_part), heads, length, -1))
    return torch.cat(outputs)
