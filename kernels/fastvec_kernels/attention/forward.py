"""Attention forward kernels: one for sequences that fit into one tile of keys, one that loops over the keys.

Shapes: T packed tokens, H query heads, Hkv key and value heads, D and Dv head sizes.
`forward_short` keeps all of a sequence's K and V and loops over its rows: it has no loop over keys, rescales nothing,
and reads K and V once. `forward_long` keeps a tile of rows and loops over the keys (Dao, FlashAttention-2, 2023); it
masks the first and the last tiles, but not those between.
"""

from fastvec_kernels._launch import tl, triton
from fastvec_kernels.attention.parts import (
    capped,
    dropout_words,
    kept,
    key_range,
    load_keys,
    load_rows,
    row_positions,
    sees,
    sequence_bases,
    sequence_of,
)


@triton.jit
def store_rows(o_ptr, lse_ptr, o, lse, start, token, head, length, heads, KIND: tl.constexpr, WIDTH: tl.constexpr):
    """Write outputs [T, H, Dv] and log-sum-exps [T, H] of the rows of a tile that are inside the sequence."""
    in_sequence = token < length
    row = (start + token).to(tl.int64) * heads + head
    column = tl.arange(0, WIDTH)
    mask = in_sequence[:, None] & (column < KIND.value_dim)[None, :]
    tl.store(o_ptr + row[:, None] * KIND.value_dim + column[None, :], o, mask=mask)
    tl.store(lse_ptr + row, lse, mask=in_sequence)


@triton.jit
def softmax(products, token, key, head, sequence, length, sinks_ptr, batch, rule, KIND: tl.constexpr):
    """Return (p, highest, total) of rows with all their keys, from q·k; p / total are the probabilities.

    The row's log2-sum-exp2 is highest + log2(total).
    """
    s, _ = capped(products, rule, KIND)
    s = tl.where(sees(token[:, None], key[None, :], length, rule, KIND), s, float("-inf"))
    highest = tl.max(s, 1)
    if KIND.causal or KIND.window:  # a row after the sequence's end may see no key
        highest = tl.where(token < length, highest, 0.0)
    if KIND.sinks:
        sink = tl.load(sinks_ptr + head).to(tl.float32) * 1.4426950408889634
        highest = tl.maximum(highest, sink)
    p = tl.exp2(s - highest[:, None])
    total = tl.sum(p, 1)
    if KIND.sinks:
        total += tl.exp2(sink - highest)
    if KIND.dropout:
        words = dropout_words(batch, sequence, token[:, None], head[:, None], rule, KIND)
        p = tl.where(kept(words, key[None, :], rule), p * rule.keep_scale, 0.0)
    if KIND.causal or KIND.window:
        total = tl.where(token < length, total, 1.0)
    return p, highest, total


@triton.jit(do_not_specialize=["first_item", "rule"])
def forward_short(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, sinks_ptr, strides, batch, first_item, heads, rule,
    KIND: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    item = batch.items + 2 * (first_item + tl.program_id(0))
    sequence, start, length = sequence_of(item, batch)
    kv_head = tl.program_id(1)
    key = tl.arange(0, TILE.keys)
    q_base, k_base, v_base = sequence_bases(q_ptr, k_ptr, v_ptr, strides, start, kv_head)
    k = load_keys(k_base, strides.k, 0, length, TILE.keys, KIND.head_dim, WIDTH, False, KIND.upcast)
    v = load_keys(v_base, strides.v, 0, length, TILE.keys, KIND.value_dim, VALUE_WIDTH, False, KIND.upcast)
    for first_row in tl.range(0, length * KIND.group, TILE.rows):
        token, head = row_positions(first_row, kv_head, KIND, TILE.rows)
        q = load_rows(q_base, strides.q, token, head, length, KIND.head_dim, WIDTH, KIND.upcast)
        products = tl.dot(q, k.T, input_precision=KIND.precision)
        p, highest, total = softmax(products, token, key, head, sequence, length, sinks_ptr, batch, rule, KIND)
        o = tl.dot(p.to(v.dtype), v, input_precision=KIND.precision) / total[:, None]
        lse = highest + tl.log2(total)
        store_rows(o_ptr, lse_ptr, o, lse, start, token, head, length, heads, KIND, VALUE_WIDTH)


@triton.jit
def _attend(q, k, v, state, words, token, first_key, length, rule, KIND: tl.constexpr, MASKED: tl.constexpr):
    """Add a tile of keys to the running (acc, highest, total) of a tile of rows: one step of the online softmax."""
    acc, highest, total = state
    key = first_key + tl.arange(0, k.shape[0])
    s, _ = capped(tl.dot(q, k.T, input_precision=KIND.precision), rule, KIND)
    if MASKED:
        s = tl.where(sees(token[:, None], key[None, :], length, rule, KIND), s, float("-inf"))
    higher = tl.maximum(highest, tl.max(s, 1))
    shift = higher
    if MASKED and KIND.window:  # a row may not have seen a key of its window yet
        shift = tl.where(higher == float("-inf"), 0.0, higher)
    p = tl.exp2(s - shift[:, None])
    shrink = tl.exp2(highest - shift)
    total = total * shrink + tl.sum(p, 1)
    if KIND.dropout:
        p = tl.where(kept(words, key[None, :], rule), p * rule.keep_scale, 0.0)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=KIND.precision)
    return acc, higher, total


@triton.jit(do_not_specialize=["rule"])
def forward_long(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, sinks_ptr, strides, batch, heads, rule,
    KIND: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    item = batch.items + 2 * tl.program_id(0)
    sequence, start, length = sequence_of(item, batch)
    first_row, kv_head = tl.load(item + 1), tl.program_id(1)
    q_base, k_base, v_base = sequence_bases(q_ptr, k_ptr, v_ptr, strides, start, kv_head)
    ROWS: tl.constexpr = TILE.rows
    KEYS: tl.constexpr = TILE.keys
    token, head = row_positions(first_row, kv_head, KIND, ROWS)
    q = load_rows(q_base, strides.q, token, head, length, KIND.head_dim, WIDTH, KIND.upcast)
    acc = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if KIND.sinks:  # a sink is one more score, added first
        highest = tl.load(sinks_ptr + head).to(tl.float32) * 1.4426950408889634
        total += 1.0
    words = dropout_words(batch, sequence, token[:, None], head[:, None], rule, KIND)
    begin, inside_begin, inside_end, end = key_range(first_row, ROWS, length, rule, KIND, KEYS)
    state = (acc, highest, total)
    if KIND.window:
        for first_key in tl.range(begin, inside_begin, KEYS, num_stages=1):
            k = load_keys(k_base, strides.k, first_key, length, KEYS, KIND.head_dim, WIDTH, False, KIND.upcast)
            v = load_keys(v_base, strides.v, first_key, length, KEYS, KIND.value_dim, VALUE_WIDTH, False, KIND.upcast)
            state = _attend(q, k, v, state, words, token, first_key, length, rule, KIND, True)
    for first_key in tl.range(inside_begin, inside_end, KEYS):
        k = load_keys(k_base, strides.k, first_key, length, KEYS, KIND.head_dim, WIDTH, True, KIND.upcast)
        v = load_keys(v_base, strides.v, first_key, length, KEYS, KIND.value_dim, VALUE_WIDTH, True, KIND.upcast)
        state = _attend(q, k, v, state, words, token, first_key, length, rule, KIND, False)
    for first_key in tl.range(inside_end, end, KEYS, num_stages=1):
        k = load_keys(k_base, strides.k, first_key, length, KEYS, KIND.head_dim, WIDTH, False, KIND.upcast)
        v = load_keys(v_base, strides.v, first_key, length, KEYS, KIND.value_dim, VALUE_WIDTH, False, KIND.upcast)
        state = _attend(q, k, v, state, words, token, first_key, length, rule, KIND, True)
    acc, highest, total = state
    if KIND.window:  # a row after the sequence's end may have seen no key
        total = tl.where(token < length, total, 1.0)
    lse = highest + tl.log2(total)
    store_rows(o_ptr, lse_ptr, acc / total[:, None], lse, start, token, head, length, heads, KIND, VALUE_WIDTH)
