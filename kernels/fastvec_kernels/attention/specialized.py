"""Attention forward kernel for long sequences on Hopper, warp-specialized: one warp loads, the others compute.

Triton's warp specialization (3.6 and 3.9) requires tensor descriptors for all three inputs, one loop, and four warps;
with a second loop, or with Q read through pointers, it fails to compile. A program therefore serves one query head, and
every tile of keys is masked. The descriptors are built on the device and end with the sequence: the tensor memory
accelerator (TMA) returns zeros after it, so that a NaN of the next sequence is never read.
"""

import torch

from fastvec_kernels._launch import tl, triton
from fastvec_kernels.attention.forward import store_rows
from fastvec_kernels.attention.parts import sequence_of


def fits_descriptors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Return whether TMA can address the tensors: starts, strides and head sizes are multiples of 16 bytes."""
    return all(
        x.data_ptr() % 16 == 0 and all(size * x.element_size() % 16 == 0 for size in (*x.stride()[:2], x.shape[2]))
        for x in (q, k, v)
    )


@triton.jit(do_not_specialize=["rule"])
def forward_specialized(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, strides, batch, heads, rule,
    KIND: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = TILE.rows
    KEYS: tl.constexpr = TILE.keys
    item = batch.items + 2 * tl.program_id(0)
    _, start, length = sequence_of(item, batch)
    first_row, head = tl.load(item + 1), tl.program_id(1)
    kv_head = head // KIND.group
    first = start.to(tl.int64)
    q_desc = tl.make_tensor_descriptor(
        q_ptr + first * strides.q.token + head * strides.q.head,
        [length, KIND.head_dim], [strides.q.token, 1], [ROWS, WIDTH],
    )  # fmt: skip
    k_desc = tl.make_tensor_descriptor(
        k_ptr + first * strides.k.token + kv_head * strides.k.head,
        [length, KIND.head_dim], [strides.k.token, 1], [KEYS, WIDTH],
    )  # fmt: skip
    v_desc = tl.make_tensor_descriptor(
        v_ptr + first * strides.v.token + kv_head * strides.v.head,
        [length, KIND.value_dim], [strides.v.token, 1], [KEYS, VALUE_WIDTH],
    )  # fmt: skip
    q = q_desc.load([first_row, 0])
    token = first_row + tl.arange(0, ROWS)
    acc = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    end = length
    if KIND.causal:
        end = tl.minimum(first_row + ROWS, length)
    for first_key in tl.range(0, end, KEYS, warp_specialize=True):
        k = k_desc.load([first_key, 0])
        v = v_desc.load([first_key, 0])
        key = first_key + tl.arange(0, KEYS)
        visible = (key < length)[None, :]
        if KIND.causal:
            visible = visible & (key[None, :] <= token[:, None])
        s = tl.where(visible, tl.dot(q, k.T) * rule.scale, float("-inf"))
        higher = tl.maximum(highest, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        highest = higher
    lse = highest + tl.log2(total)
    store_rows(o_ptr, lse_ptr, acc / total[:, None], lse, start, token, head, length, heads, KIND, VALUE_WIDTH)
