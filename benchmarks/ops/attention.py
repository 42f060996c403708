"""The workloads of attention: fastvec's kernels against SDPA, varlen_attn, FlexAttention and flash_attn.

`rope_attention` has no counterpart in another library, so it is measured against the two ops of which it consists.
"""

import inspect
import itertools
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from benchmarks.ops.roofline import attention_bytes, attention_flops
from benchmarks.ops.shapes import Shape
from benchmarks.ops.workload import Implementation, Tensors, Unavailable, Workload, optional
from fastvec_kernels import rope, rope_attention, rope_attention_reference
from fastvec_kernels.attention.interface import AttentionPlan, attention, attention_reference

LONG = 1024  # above this length the float32 reference runs one key head at a time: one head's scores take 256 MiB at 8k


def attention_workload(shape: Shape, device: str, dtype: torch.dtype) -> Workload:
    lengths = shape.lengths
    plan = AttentionPlan.build(lengths, device)
    scale = shape.head_dim**-0.5

    def inputs() -> Tensors:
        heads = (shape.heads, shape.kv_heads, shape.kv_heads)
        return tuple(torch.randn(sum(lengths), h, shape.head_dim, device=device, dtype=dtype) for h in heads)

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        return (attention(q, k, v, plan, scale=scale),)

    def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        if max(lengths) <= LONG:
            return (attention_reference(q, k, v, plan, scale=scale),)
        heads = zip(q.chunk(k.shape[1], dim=1), torch.split(k, 1, dim=1), torch.split(v, 1, dim=1), strict=True)
        each = (checkpoint(attention_reference, *one, plan, scale=scale, use_reentrant=False) for one in heads)
        return (torch.cat(list(each), dim=1),)

    makers: dict[str, Callable[[], Implementation]] = {
        "fastvec": lambda: Implementation(call=ours),
        "reference": lambda: Implementation(call=lambda q, k, v: (attention_reference(q, k, v, plan, scale=scale),)),
        "SDPA cuDNN, padded": partial(padded_sdpa, lengths, device, SDPBackend.CUDNN_ATTENTION),
        "SDPA flash, padded": partial(padded_sdpa, lengths, device, SDPBackend.FLASH_ATTENTION),
        "SDPA, sorted runs": partial(runs_sdpa, lengths, device),
        "varlen_attn": partial(varlen, plan),
        "FlexAttention": partial(flex, lengths, device),
        "flash_attn": partial(flash, plan),
    }
    sizes = (shape.heads, shape.kv_heads, shape.head_dim)
    return Workload(
        op="attention",
        shape=shape,
        inputs=inputs,
        gradients=3,
        reference=reference,
        implementations=makers,
        bytes={
            "forward": attention_bytes(sum(lengths), *sizes),
            "backward": attention_bytes(sum(lengths), *sizes, backward=True),
        },
        flops={
            "forward": attention_flops(lengths, shape.heads, shape.head_dim),
            "backward": attention_flops(lengths, shape.heads, shape.head_dim, backward=True),
        },
    )


def rope_attention_workload(shape: Shape, device: str, dtype: torch.dtype) -> Workload:
    """Measure the op as a layer of the fused path calls it, with norms of q and k in the variant "norm"."""
    lengths, size = shape.lengths, shape.head_dim
    plan = AttentionPlan.build(lengths, device)
    positions = torch.cat([torch.arange(length) for length in lengths])
    angles = positions[:, None] / 10_000 ** (torch.arange(0, size, 2) / size)
    turn = [angles.cos().to(device), angles.sin().to(device)]
    split: dict[str, Any] = {"heads": shape.heads, "kv_heads": shape.kv_heads}
    norms = 2 if shape.variant == "norm" else 0

    def inputs() -> Tensors:
        qkv = torch.randn(len(positions), (shape.heads + 2 * shape.kv_heads) * size, device=device, dtype=dtype)
        return (qkv, *(torch.randn(size, device=device, dtype=dtype) for _ in range(norms)))

    def of(op: Callable[..., torch.Tensor]) -> Callable[..., Tensors]:
        def call(qkv: torch.Tensor, *weights: torch.Tensor) -> Tensors:
            options = dict(zip(("q_weight", "k_weight"), weights, strict=False))
            return (op(qkv, *turn, plan, scale=size**-0.5, **split, **options),)

        return call

    def one_after_the_other(
        qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, plan: AttentionPlan, *, scale: float, **options: Any
    ) -> torch.Tensor:
        return attention(*rope(qkv, cos, sin, **options), plan, scale=scale)

    return Workload(
        op="rope_attention",
        shape=shape,
        inputs=inputs,
        gradients=0,
        reference=of(rope_attention_reference),
        implementations={
            "fastvec": lambda: Implementation(call=of(rope_attention)),
            "one after the other": lambda: Implementation(call=of(one_after_the_other)),
            "reference": lambda: Implementation(call=of(rope_attention_reference)),
        },
        bytes={"forward": attention_bytes(len(positions), shape.heads, shape.kv_heads, size)},
    )


def padded_sdpa(lengths: tuple[int, ...], device: str, backend: SDPBackend) -> Implementation:
    """Run SDPA on [n, H, longest, D] with a padding mask, as a padded model does."""
    n, longest = len(lengths), max(lengths)
    ragged = min(lengths) < longest
    if ragged and backend == SDPBackend.FLASH_ATTENTION:
        raise Unavailable("does not support a padding mask")
    valid = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]  # [n, longest]
    place = valid.flatten().cumsum(0).sub(1).clamp(min=0).to(device)  # padding repeats the token before it
    tokens = valid.flatten().nonzero()[:, 0].to(device)
    mask = valid[:, None, None, :].to(device) if ragged else None

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        with sdpa_kernel(backend):
            grouped = q.shape[1] != k.shape[1]
            return (F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped),)

    def prepare(tensors: Tensors) -> Tensors:
        return tuple(x[place].view(n, longest, *x.shape[1:]).transpose(1, 2) for x in tensors)

    def restore(outputs: Tensors) -> Tensors:
        return tuple(o.transpose(1, 2).flatten(0, 1)[tokens] for o in outputs)

    return Implementation(call=call, prepare=prepare, restore=restore)


def runs_sdpa(lengths: tuple[int, ...], device: str) -> Implementation:
    """Sort the sequences by length and make one SDPA call per run of equal lengths; PyTorch chooses the backend."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    starts = [0, *itertools.accumulate(lengths)]
    tokens = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in order]).to(device)
    back = tokens.argsort()
    runs = [(length, len(list(run))) for length, run in itertools.groupby(lengths[i] for i in order)]
    sizes = [length * n for length, n in runs]

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        grouped = q.shape[1] != k.shape[1]
        outputs = []
        for (_, n), *own in zip(runs, *(torch.split(x, sizes) for x in (q, k, v)), strict=True):
            one, other, value = (x.view(n, -1, *x.shape[1:]).transpose(1, 2) for x in own)
            outputs.append(
                F.scaled_dot_product_attention(one, other, value, enable_gqa=grouped).transpose(1, 2).flatten(0, 1)
            )
        return (torch.cat(outputs),)

    return Implementation(
        call=call,
        prepare=lambda tensors: tuple(x[tokens] for x in tensors),
        restore=lambda outputs: tuple(o[back] for o in outputs),
    )


def varlen(plan: AttentionPlan) -> Implementation:
    varlen_attn = optional("torch.nn.attention.varlen").varlen_attn
    takes = inspect.signature(varlen_attn).parameters
    longest = max(plan.lengths)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        options = {"enable_gqa": True} if "enable_gqa" in takes and q.shape[1] != k.shape[1] else {}
        return (varlen_attn(q, k, v, plan.cu_seqlens, plan.cu_seqlens, longest, longest, **options),)

    return Implementation(call=call)


@cache
def _compiled_flex() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    torch._functorch.config.donated_buffer = False  # a measurement runs one graph's backward pass many times
    return torch.compile(flex_attention, dynamic=False)


def flex(lengths: tuple[int, ...], device: str) -> Implementation:
    """Run FlexAttention on [1, H, T, D] with a document mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = sum(lengths)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)

    def in_document(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return document[query] == document[key]

    torch._dynamo.reset()  # otherwise it stops compiling after 8 shapes
    mask = create_block_mask(in_document, None, None, tokens, tokens, device=device)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        return (_compiled_flex()(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1]),)

    return Implementation(
        call=call,
        prepare=lambda tensors: tuple(x.transpose(0, 1)[None] for x in tensors),
        restore=lambda outputs: tuple(o[0].transpose(0, 1) for o in outputs),
    )


def flash(plan: AttentionPlan) -> Implementation:
    flash_attn_varlen_func = optional("flash_attn").flash_attn_varlen_func
    longest = max(plan.lengths)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        return (flash_attn_varlen_func(q, k, v, plan.cu_seqlens, plan.cu_seqlens, longest, longest),)

    return Implementation(call=call)
