"""Attention backward kernels. Each gradient is written by the one program that owns it, so there are no atomics.

    P = exp2(S − lse)    dP = dO Vᵀ / (1 − p) if dropout kept the pair, else 0    delta_i = Σ_j P_ij dP_ij = dO_i · O_i
    dS = P (dP − delta)    dV = P'ᵀ dO, with P' = P after dropout      dK = scale · dSᵀ Q      dQ = scale · dS K

A softcap multiplies dS by its derivative. A sink has no value, so it enters through lse alone.
`backward_short` keeps all of a sequence's K and V and computes dQ, dK and dV in one pass over its rows; delta is then a
sum over the tile, and O is not needed. Longer sequences take `delta_of`, `backward_keys` (each program keeps a tile of
keys and loops over the rows) and `backward_rows` (each program keeps a tile of rows and loops over the keys).
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


@triton.jit(do_not_specialize=["rows"])
def delta_of(
    o_ptr, do_ptr, delta_ptr, do_strides, rows, heads, SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """Compute delta [T, H] = Σ over Dv of o · do; o [T, H, Dv] is dense."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    mask = (row < rows)[:, None] & (column < SIZE)[None, :]
    do_place = row // heads * do_strides.token + row % heads * do_strides.head
    o = tl.load(o_ptr + row[:, None] * SIZE + column[None, :], mask=mask, other=0.0).to(tl.float32)
    do = tl.load(do_ptr + do_place[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(delta_ptr + row, tl.sum(o * do, 1), mask=row < rows)


@triton.jit
def _p_and_ds(
    products, dproducts, lse, delta, query, key, words, length, rule, KIND: tl.constexpr, MASKED: tl.constexpr
):
    """Return (P', dS before the scale) of a tile from its q·k and do·v; all other arguments broadcast.

    The tile is rows by keys or keys by rows. Without `delta` it must be rows by keys and contain every key.
    """
    s, slope = capped(products, rule, KIND)
    if MASKED:
        s = tl.where(sees(query, key, length, rule, KIND), s, float("-inf"))
    p = tl.exp2(s - lse)
    dropped = p
    if KIND.dropout:
        keep = kept(words, key, rule)
        dproducts = tl.where(keep, dproducts * rule.keep_scale, 0.0)
        dropped = tl.where(keep, p * rule.keep_scale, 0.0)
    if delta is None:
        delta = tl.sum(p * dproducts, 1)[:, None]
    ds = p * (dproducts - delta)
    if KIND.softcap:
        ds *= slope
    return dropped, ds


@triton.jit
def _store(base, strides, place, head, in_sequence, x, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Write x [·, WIDTH] at tokens `place` and heads `head`; `base` points to the sequence's first token."""
    column = tl.arange(0, WIDTH)
    mask = in_sequence[:, None] & (column < SIZE)[None, :]
    tl.store(base + (place * strides.token + head * strides.head)[:, None] + column[None, :], x, mask=mask)


@triton.jit
def _load_per_row(ptr, start, token, head, heads, length, PAST: tl.constexpr):
    """Load one number of [T, H] per row of a tile, PAST after the sequence's end: lse = +inf makes P zero there."""
    return tl.load(ptr + (start + token).to(tl.int64) * heads + head, mask=token < length, other=PAST)


@triton.jit(do_not_specialize=["first_item", "rule"])
def backward_short(
    q_ptr, k_ptr, v_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr, lse_ptr, strides, do_strides, grads, batch, first_item, heads,
    scale, rule, KIND: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    KEYS: tl.constexpr = TILE.keys
    item = batch.items + 2 * (first_item + tl.program_id(0))
    sequence, start, length = sequence_of(item, batch)
    kv_head = tl.program_id(1)
    q_base, k_base, v_base = sequence_bases(q_ptr, k_ptr, v_ptr, strides, start, kv_head)
    dq_base, dk_base, dv_base = sequence_bases(dq_ptr, dk_ptr, dv_ptr, grads, start, kv_head)
    do_base = do_ptr + start.to(tl.int64) * do_strides.token
    key = tl.arange(0, KEYS)
    k = load_keys(k_base, strides.k, 0, length, KEYS, KIND.head_dim, WIDTH, False, KIND.upcast)
    v = load_keys(v_base, strides.v, 0, length, KEYS, KIND.value_dim, VALUE_WIDTH, False, KIND.upcast)
    dk = tl.zeros([KEYS, WIDTH], tl.float32)
    dv = tl.zeros([KEYS, VALUE_WIDTH], tl.float32)
    for first_row in tl.range(0, length * KIND.group, TILE.rows):
        token, head = row_positions(first_row, kv_head, KIND, TILE.rows)
        q = load_rows(q_base, strides.q, token, head, length, KIND.head_dim, WIDTH, KIND.upcast)
        do = load_rows(do_base, do_strides, token, head, length, KIND.value_dim, VALUE_WIDTH, KIND.upcast)
        lse = _load_per_row(lse_ptr, start, token, head, heads, length, float("inf"))
        words = dropout_words(batch, sequence, token[:, None], head[:, None], rule, KIND)
        s = tl.dot(q, k.T, input_precision=KIND.precision)
        dp = tl.dot(do, v.T, input_precision=KIND.precision)
        p, ds = _p_and_ds(s, dp, lse[:, None], None, token[:, None], key[None, :], words, length, rule, KIND, True)
        ds = ds.to(q.dtype)
        dv = tl.dot(p.to(do.dtype).T, do, dv, input_precision=KIND.precision)
        dk = tl.dot(ds.T, q, dk, input_precision=KIND.precision)
        dq = tl.dot(ds, k, input_precision=KIND.precision) * scale
        _store(dq_base, grads.q, token, head, token < length, dq, KIND.head_dim, WIDTH)
    _store(dk_base, grads.k, key, 0, key < length, dk * scale, KIND.head_dim, WIDTH)
    _store(dv_base, grads.v, key, 0, key < length, dv, KIND.value_dim, VALUE_WIDTH)


@triton.jit
def _row_range(first_key, last_key, length, rule, KIND: tl.constexpr):
    """Return the tokens [begin, end) that see any of these keys."""
    begin = 0
    end = length
    if KIND.causal:
        begin = first_key
        if KIND.window:
            end = tl.minimum(last_key + rule.window, length)
    elif KIND.window:
        begin = tl.maximum(first_key - rule.window, 0)
        end = tl.minimum(last_key + rule.window + 1, length)
    return begin, end


@triton.jit(do_not_specialize=["rule"])
def backward_keys(
    q_ptr, k_ptr, v_ptr, do_ptr, dk_ptr, dv_ptr, lse_ptr, delta_ptr, strides, do_strides, grads, batch, heads,
    scale, rule, KIND: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute dK and dV of a tile of keys; the scores are transposed, [keys, rows], so that K and V stay in place."""
    KEYS: tl.constexpr = TILE.keys
    item = batch.items + 2 * tl.program_id(0)
    sequence, start, length = sequence_of(item, batch)
    first_key, kv_head = tl.load(item + 1), tl.program_id(1)
    q_base, k_base, v_base = sequence_bases(q_ptr, k_ptr, v_ptr, strides, start, kv_head)
    do_base = do_ptr + start.to(tl.int64) * do_strides.token
    key = first_key + tl.arange(0, KEYS)
    k = load_keys(k_base, strides.k, first_key, length, KEYS, KIND.head_dim, WIDTH, False, KIND.upcast)
    v = load_keys(v_base, strides.v, first_key, length, KEYS, KIND.value_dim, VALUE_WIDTH, False, KIND.upcast)
    dk = tl.zeros([KEYS, WIDTH], tl.float32)
    dv = tl.zeros([KEYS, VALUE_WIDTH], tl.float32)
    begin, end = _row_range(first_key, tl.minimum(first_key + KEYS, length) - 1, length, rule, KIND)
    for first_row in tl.range(begin * KIND.group, end * KIND.group, TILE.rows):
        token, head = row_positions(first_row, kv_head, KIND, TILE.rows)
        q = load_rows(q_base, strides.q, token, head, length, KIND.head_dim, WIDTH, KIND.upcast)
        do = load_rows(do_base, do_strides, token, head, length, KIND.value_dim, VALUE_WIDTH, KIND.upcast)
        lse = _load_per_row(lse_ptr, start, token, head, heads, length, float("inf"))[None, :]
        delta = _load_per_row(delta_ptr, start, token, head, heads, length, 0.0)[None, :]
        words = dropout_words(batch, sequence, token[None, :], head[None, :], rule, KIND)
        st = tl.dot(k, q.T, input_precision=KIND.precision)
        dpt = tl.dot(v, do.T, input_precision=KIND.precision)
        # a key after the end needs no mask: it affects only its own rows of dK and dV, which are not stored
        MASKED: tl.constexpr = KIND.causal or KIND.window
        pt, dst = _p_and_ds(st, dpt, lse, delta, token[None, :], key[:, None], words, length, rule, KIND, MASKED)
        dv = tl.dot(pt.to(do.dtype), do, dv, input_precision=KIND.precision)
        dk = tl.dot(dst.to(q.dtype), q, dk, input_precision=KIND.precision)
    _, dk_base, dv_base = sequence_bases(dk_ptr, dk_ptr, dv_ptr, grads, start, kv_head)
    _store(dk_base, grads.k, key, 0, key < length, dk * scale, KIND.head_dim, WIDTH)
    _store(dv_base, grads.v, key, 0, key < length, dv, KIND.value_dim, VALUE_WIDTH)


@triton.jit(do_not_specialize=["rule"])
def backward_rows(
    q_ptr, k_ptr, v_ptr, do_ptr, dq_ptr, lse_ptr, delta_ptr, strides, do_strides, grads, batch, heads, scale, rule,
    KIND: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute dQ of a tile of rows."""
    ROWS: tl.constexpr = TILE.rows
    KEYS: tl.constexpr = TILE.keys
    item = batch.items + 2 * tl.program_id(0)
    sequence, start, length = sequence_of(item, batch)
    first_row, kv_head = tl.load(item + 1), tl.program_id(1)
    q_base, k_base, v_base = sequence_bases(q_ptr, k_ptr, v_ptr, strides, start, kv_head)
    token, head = row_positions(first_row, kv_head, KIND, ROWS)
    q = load_rows(q_base, strides.q, token, head, length, KIND.head_dim, WIDTH, KIND.upcast)
    do_base = do_ptr + start.to(tl.int64) * do_strides.token
    do = load_rows(do_base, do_strides, token, head, length, KIND.value_dim, VALUE_WIDTH, KIND.upcast)
    lse = _load_per_row(lse_ptr, start, token, head, heads, length, float("inf"))[:, None]
    delta = _load_per_row(delta_ptr, start, token, head, heads, length, 0.0)[:, None]
    words = dropout_words(batch, sequence, token[:, None], head[:, None], rule, KIND)
    dq = tl.zeros([ROWS, WIDTH], tl.float32)
    begin, inside_begin, inside_end, end = key_range(first_row, ROWS, length, rule, KIND, KEYS)
    if KIND.window:
        for first_key in tl.range(begin, inside_begin, KEYS, num_stages=1):
            k = load_keys(k_base, strides.k, first_key, length, KEYS, KIND.head_dim, WIDTH, False, KIND.upcast)
            v = load_keys(v_base, strides.v, first_key, length, KEYS, KIND.value_dim, VALUE_WIDTH, False, KIND.upcast)
            dq = _add_dq(dq, q, do, k, v, lse, delta, token, first_key, words, length, rule, KIND, True)
    for first_key in tl.range(inside_begin, inside_end, KEYS):
        k = load_keys(k_base, strides.k, first_key, length, KEYS, KIND.head_dim, WIDTH, True, KIND.upcast)
        v = load_keys(v_base, strides.v, first_key, length, KEYS, KIND.value_dim, VALUE_WIDTH, True, KIND.upcast)
        dq = _add_dq(dq, q, do, k, v, lse, delta, token, first_key, words, length, rule, KIND, False)
    for first_key in tl.range(inside_end, end, KEYS, num_stages=1):
        k = load_keys(k_base, strides.k, first_key, length, KEYS, KIND.head_dim, WIDTH, False, KIND.upcast)
        v = load_keys(v_base, strides.v, first_key, length, KEYS, KIND.value_dim, VALUE_WIDTH, False, KIND.upcast)
        dq = _add_dq(dq, q, do, k, v, lse, delta, token, first_key, words, length, rule, KIND, True)
    dq_base = dq_ptr + start.to(tl.int64) * grads.q.token
    _store(dq_base, grads.q, token, head, token < length, dq * scale, KIND.head_dim, WIDTH)


@triton.jit
def _add_dq(
    dq, q, do, k, v, lse, delta, token, first_key, words, length, rule, KIND: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    key = first_key + tl.arange(0, k.shape[0])
    s = tl.dot(q, k.T, input_precision=KIND.precision)
    dp = tl.dot(do, v.T, input_precision=KIND.precision)
    _, ds = _p_and_ds(s, dp, lse, delta, token[:, None], key[None, :], words, length, rule, KIND, MASKED)
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=KIND.precision)
