"""Code shared by the attention kernels: rows and keys of a program, scores, masks and dropout.

A program works on one key and value head of one sequence. Its rows are the sequence's tokens times the G query heads
that read this head, with the token as the major index: row r is token r // G and query head kv_head · G + r % G. All
heads of a group are thus in one tile, and K and V are read once for all of them.
Scores are in base 2: exp2 is one instruction, and log2(e) is folded into the scale.
"""

from typing import Any, NamedTuple

from fastvec_kernels._launch import tl, triton


class Strides(NamedTuple):
    """Strides between tokens and between heads, in elements; the last axis is dense."""

    token: int
    head: int


class Inputs(NamedTuple):
    """Strides of q, k and v, or of their gradients."""

    q: Strides
    k: Strides
    v: Strides


class Batch(NamedTuple):
    """The plan of a packed batch, on the device."""

    cu_seqlens: Any  # [n + 1] int32
    items: Any  # [items, 2] int32: a sequence, and the first row or key of a tile in it
    sequence_ids: Any  # [n] int32, by which dropout identifies a sequence


class ScoreParameters(NamedTuple):
    """Run-time parameters of the scores; a kernel reads only those of the features that its `Kind` turns on."""

    scale: float  # log2(e) times the softmax's scale
    softcap: float  # log2(e) times the cap
    cap_scale: float  # 2 · log2(e) · scale / cap: exp2(cap_scale · q·k) is the e^2y of tanh(y)
    window: int
    seed: int
    drop_below: int  # a key is dropped if its 24 random bits are below this
    keep_scale: float  # 1 / (1 − p)


class Kind(NamedTuple):
    """Compile-time parameters of a kernel, apart from its tile."""

    group: int  # G
    head_dim: int  # D
    value_dim: int
    causal: bool = False
    window: bool = False
    softcap: bool = False
    sinks: bool = False
    dropout: bool = False
    upcast: bool = False  # compute in float32, as the interpreter's bfloat16 arithmetic is wrong
    precision: str = "tf32"  # input precision of float32 products


class Tile(NamedTuple):
    """Tile size of a program, and its compile options."""

    rows: int
    keys: int
    warps: int
    stages: int
    path: str = "pointer"  # or "specialized": tensor descriptors, loaded by a dedicated warp
    excludes: str = ""  # for what too few registers are left, by names in `Kind`: "dropout causal+window"


@triton.jit
def sequence_of(item, batch):
    """Return the sequence of an item of the plan, its first token and its length."""
    sequence = tl.load(item)
    start = tl.load(batch.cu_seqlens + sequence)
    return sequence, start, tl.load(batch.cu_seqlens + sequence + 1) - start


@triton.jit
def row_positions(first_row, kv_head, KIND: tl.constexpr, ROWS: tl.constexpr):
    """Return (token in the sequence, query head) of each row of a tile."""
    row = first_row + tl.arange(0, ROWS)
    return row // KIND.group, kv_head * KIND.group + row % KIND.group


@triton.jit
def sequence_bases(q_ptr, k_ptr, v_ptr, strides, start, kv_head):
    """Return pointers to a sequence's q, k and v; int64, as a large batch exceeds 2^31 elements.

    Offsets inside a sequence are int32.
    """
    first = start.to(tl.int64)
    return (
        q_ptr + first * strides.q.token,
        k_ptr + first * strides.k.token + kv_head * strides.k.head,
        v_ptr + first * strides.v.token + kv_head * strides.v.head,
    )


@triton.jit
def load_rows(base, strides, token, head, length, SIZE: tl.constexpr, WIDTH: tl.constexpr, UPCAST: tl.constexpr):
    """Load [rows, WIDTH] of x [T, heads, SIZE]; zeros after the sequence's end and after SIZE.

    `base` points to the sequence's first token.
    """
    column = tl.arange(0, WIDTH)
    mask = (token < length)[:, None]
    if SIZE != WIDTH:
        mask = mask & (column < SIZE)[None, :]
    x = tl.load(base + (token * strides.token + head * strides.head)[:, None] + column[None, :], mask=mask, other=0.0)
    return x.to(tl.float32) if UPCAST else x


@triton.jit
def load_keys(
    base, strides, first_key, length,
    KEYS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, INSIDE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Load [KEYS, WIDTH] of x [T, SIZE] from `first_key` on; `base` points to the sequence's first token.

    Zeros after SIZE and, unless all keys are INSIDE, after the sequence's end, as a NaN of the next sequence times 0
    would be NaN.
    """
    # the offsets inside a tile are the same in every step; only a scalar changes
    tile = base + tl.cast(first_key, tl.int64) * strides.token
    key, column = tl.arange(0, KEYS), tl.arange(0, WIDTH)
    place = tile + (key * strides.token)[:, None] + column[None, :]
    if SIZE == WIDTH and INSIDE:
        x = tl.load(place)
    elif SIZE == WIDTH:
        x = tl.load(place, mask=(first_key + key < length)[:, None], other=0.0)
    elif INSIDE:
        x = tl.load(place, mask=(column < SIZE)[None, :], other=0.0)
    else:
        x = tl.load(place, mask=(first_key + key < length)[:, None] & (column < SIZE)[None, :], other=0.0)
    return x.to(tl.float32) if UPCAST else x


@triton.jit
def capped(products, rule, KIND: tl.constexpr):
    """Return the scores in base 2 from q·k, and the derivative of the softcap (1 without a softcap)."""
    s = products * rule.scale
    slope = 1.0
    if KIND.softcap:
        # c · tanh(x / c), with tanh(y) = 1 − 2 / (1 + e^2y), as no tanh instruction is accurate enough
        tanh = 1.0 - 2.0 / (1.0 + tl.exp2(products * rule.cap_scale))
        s = rule.softcap * tanh
        slope = 1.0 - tanh * tanh
    return s, slope


@triton.jit
def sees(query, key, length, rule, KIND: tl.constexpr):
    """Return whether a query sees a key; both are positions in the sequence, in shapes that broadcast."""
    visible = key < length
    if KIND.causal:
        visible = visible & (key <= query)
        if KIND.window:
            visible = visible & (query - key < rule.window)
    elif KIND.window:
        visible = visible & (tl.abs(query - key) <= rule.window)
    return visible


@triton.jit
def dropout_words(batch, sequence, token, head, rule, KIND: tl.constexpr):
    """Return two random words per row from (sequence, head, query): Philox-4x32-10 (Salmon et al., 2011)."""
    first = token.to(tl.uint32)
    second = first  # placeholders: unused without dropout
    if KIND.dropout:
        identity = tl.load(batch.sequence_ids + sequence)
        first, second, _, _ = tl.philox(rule.seed, identity + token * 0, head, token, token * 0)
    return first, second


@triton.jit
def kept(words, key, rule):
    """Return whether dropout keeps (row, key), by 24 bits mixed from the row's two words and the key's position."""
    x = words[0] + key.to(tl.uint32) * 0x9E3779B9
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = x ^ words[1]
    x = (x ^ (x >> 15)) * 0x735A2D97
    return ((x ^ (x >> 15)) >> 8).to(tl.int32) >= rule.drop_below


@triton.jit
def key_range(first_row, rows, length, rule, KIND: tl.constexpr, KEYS: tl.constexpr):
    """Return the keys [begin, end) that any row of a tile sees, and [inside_begin, inside_end) that every row sees.

    All but `end` are multiples of KEYS, unless a window leaves no whole tile inside and clips both bounds to `end`.
    """
    first_token = first_row // KIND.group
    last_token = (tl.minimum(first_row + rows, length * KIND.group) - 1) // KIND.group
    begin = 0
    inside_begin = 0
    inside_end = length // KEYS * KEYS
    end = length
    if KIND.causal:
        inside_end = (first_token + 1) // KEYS * KEYS
        end = last_token + 1
        if KIND.window:
            begin = tl.maximum(first_token - rule.window + 1, 0) // KEYS * KEYS
            inside_begin = tl.cdiv(tl.maximum(last_token - rule.window + 1, 0), KEYS) * KEYS
    elif KIND.window:
        begin = tl.maximum(first_token - rule.window, 0) // KEYS * KEYS
        inside_begin = tl.cdiv(tl.maximum(last_token - rule.window, 0), KEYS) * KEYS
        inside_end = tl.minimum(first_token + rule.window + 1, length) // KEYS * KEYS
        end = tl.minimum(last_token + rule.window + 1, length)
    if KIND.window:
        inside_begin = tl.minimum(inside_begin, end)
        inside_end = tl.maximum(inside_end, inside_begin)
    return begin, inside_begin, inside_end, end
