"""The workloads of ops bound by the copy rate, against PyTorch and Liger, and of the product with SwiGLU.

They are pooling, RMSNorm, RoPE, SwiGLU and GeGLU, dropout, and rounding to fp8. Shapes: T tokens, d head size.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.ops.roofline import (
    bytes_of_dropout,
    bytes_of_pool,
    bytes_of_quantize,
    bytes_of_rms_norm,
    bytes_of_rope,
    bytes_of_swiglu,
)
from benchmarks.ops.shapes import Shape
from benchmarks.ops.workload import Implementation, Tensors, Unavailable, Workload, optional
from fastvec_kernels import (
    add_rms_norm,
    add_rms_norm_reference,
    dropout,
    dropout_reference,
    gated_linear_reference,
    geglu,
    geglu_reference,
    pool,
    pool_reference,
    quantize_rows,
    quantize_rows_reference,
    rms_norm,
    rms_norm_reference,
    rope,
    rope_reference,
    swiglu,
    swiglu_reference,
)
from fastvec_kernels._launch import architecture
from fastvec_kernels.gated_linear import TILES, Tile, gated_product

EPS = 1e-6
GATED: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], str]] = {
    "swiglu": (swiglu, swiglu_reference, F.silu, "liger_swiglu"),
    "geglu": (geglu, geglu_reference, partial(F.gelu, approximate="tanh"), "liger_geglu"),
}
Makers = dict[str, Callable[[], Implementation]]


def plain(call: Callable[..., Any]) -> Callable[[], Implementation]:
    """Return a maker of an implementation that uses the workload's layout."""
    return lambda: Implementation(call=lambda *inputs: as_tuple(call(*inputs)))


def compiled(call: Callable[..., Any]) -> Callable[[], Implementation]:
    """Return a maker of an implementation that applies torch.compile to `call`."""

    def make() -> Implementation:
        torch._dynamo.reset()  # otherwise it stops compiling after 8 shapes
        torch._functorch.config.donated_buffer = False  # a measurement runs one graph's backward pass many times
        return plain(torch.compile(call, dynamic=False))()

    return make


def against(ours: Callable[..., Any], reference: Callable[..., Any]) -> Makers:
    """Return makers of fastvec's op, its reference, and the reference compiled with torch.compile."""
    return {"fastvec": plain(ours), "reference": plain(reference), "reference, compiled": compiled(reference)}


def as_tuple(outputs: Any) -> Tensors:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def liger(name: str) -> Any:
    return getattr(optional("liger_kernel.transformers.functional"), name)


def rms_norm_workload(shape: Shape, device: str, dtype: torch.dtype) -> Workload:
    added = shape.variant == "add"
    size = (shape.tokens, shape.width)

    def inputs() -> Tensors:
        states = tuple(torch.randn(size, device=device, dtype=dtype) for _ in range(2 if added else 1))
        return (*states, torch.randn(shape.width, device=device, dtype=dtype))

    op: Callable[..., Any] = add_rms_norm if added else rms_norm
    definition: Callable[..., Any] = add_rms_norm_reference if added else rms_norm_reference

    def ours(*tensors: torch.Tensor) -> Any:
        return op(*tensors, EPS)

    def reference(*tensors: torch.Tensor) -> Any:
        return definition(*tensors, EPS)

    def torch_op(*tensors: torch.Tensor) -> Any:
        total = tensors[0] + tensors[1] if added else tensors[0]
        y = F.rms_norm(total, (shape.width,), tensors[-1], EPS)
        return (y, total) if added else y

    def with_liger() -> Implementation:
        call = liger("liger_fused_add_rms_norm" if added else "liger_rms_norm")
        return plain(lambda *tensors: call(*tensors, EPS, in_place=False))()

    makers: Makers = {
        **against(ours, reference),
        "F.rms_norm": plain(torch_op),
        "Liger": with_liger,
    }
    return Workload(
        op="rms_norm",
        shape=shape,
        inputs=inputs,
        gradients=3 if added else 2,
        reference=lambda *tensors: as_tuple(reference(*tensors)),
        implementations=makers,
        bytes=bytes_of_rms_norm(*size, dtype.itemsize, add=added),
    )


def swiglu_workload(shape: Shape, device: str, dtype: torch.dtype) -> Workload:
    op, reference, activation, liger_name = GATED[shape.variant]

    def eager(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        y: torch.Tensor = activation(gate) * up
        return y

    def with_liger() -> Implementation:
        call = liger(liger_name)
        return Implementation(
            call=lambda gate, up: (call(gate, up),),
            prepare=lambda tensors: tuple(half.contiguous() for half in tensors[0].chunk(2, dim=-1)),
        )

    makers: Makers = {
        **against(op, reference),
        "PyTorch, eager": plain(eager),
        "Liger": with_liger,
    }
    return Workload(
        op="swiglu",
        shape=shape,
        inputs=lambda: (torch.randn(shape.tokens, 2 * shape.width, device=device, dtype=dtype),),
        gradients=1,
        reference=lambda gate_up: as_tuple(reference(gate_up)),
        implementations=makers,
        bytes=bytes_of_swiglu(shape.tokens, shape.width, dtype.itemsize),
    )


def gated_linear_workload(shape: Shape, device: str, dtype: torch.dtype) -> Workload:
    """Measure every candidate tile against the product and `swiglu` one after the other."""
    target = str(architecture(torch.device(device)))
    first, *others = TILES.get(target, ()) or TILES["sm_90"]

    def inputs() -> Tensors:
        x = torch.randn(shape.tokens, shape.hidden, device=device, dtype=dtype)
        weight = torch.randn(2 * shape.width, shape.hidden, device=device, dtype=dtype) * shape.hidden**-0.5
        return x, weight

    def with_tile(tile: Tile) -> Callable[[], Implementation]:
        return plain(lambda x, weight: gated_product(x, weight, "silu", tile))

    return Workload(
        op="gated_linear",
        shape=shape,
        inputs=inputs,
        gradients=0,
        reference=lambda x, weight: as_tuple(gated_linear_reference(x, weight, "silu")),
        implementations={
            "fastvec": with_tile(first),
            "one after the other": plain(lambda x, weight: swiglu(F.linear(x, weight))),
            "reference": plain(lambda x, weight: gated_linear_reference(x, weight, "silu")),
            **{str(tuple(tile)): with_tile(tile) for tile in others},
        },
        bytes={
            "forward": dtype.itemsize * (shape.tokens * (shape.hidden + shape.width) + 2 * shape.width * shape.hidden)
        },
        flops={"forward": 4 * shape.tokens * shape.hidden * shape.width},
    )


def dropout_workload(shape: Shape, device: str, dtype: torch.dtype) -> Workload:
    """Compare with the reference only: F.dropout draws from a random generator and would fail the check."""
    places = torch.arange(shape.tokens, device=device)
    tokens = torch.stack([places // 512, places % 512], dim=1)
    coins = {"p": 0.05, "seed": 2**40 + 1}

    def ours(x: torch.Tensor) -> torch.Tensor:
        return dropout(x, tokens, **coins)  # type: ignore[arg-type]

    def reference(x: torch.Tensor) -> torch.Tensor:
        return dropout_reference(x, tokens, **coins)  # type: ignore[arg-type]

    return Workload(
        op="dropout",
        shape=shape,
        inputs=lambda: (torch.randn(shape.tokens, shape.width, device=device, dtype=dtype),),
        gradients=1,
        reference=lambda x: as_tuple(reference(x)),
        implementations=against(ours, reference),
        bytes=bytes_of_dropout(shape.tokens, shape.width, dtype.itemsize),
    )


def quantize_workload(shape: Shape, device: str, dtype: torch.dtype) -> Workload:
    """Measure the op as fp8's linear layers call it; it has no backward."""
    return Workload(
        op="quantize",
        shape=shape,
        inputs=lambda: (torch.randn(shape.tokens, shape.width, device=device, dtype=dtype),),
        gradients=0,
        reference=lambda x: as_tuple(quantize_rows_reference(x)),
        implementations=against(quantize_rows, quantize_rows_reference),
        bytes=bytes_of_quantize(shape.tokens, shape.width, dtype.itemsize),
    )


def rope_workload(shape: Shape, device: str, dtype: torch.dtype) -> Workload:
    tokens, heads, kv_heads, size = shape.tokens, shape.heads, shape.kv_heads, shape.head_dim
    width = (heads + 2 * kv_heads) * size
    position = torch.arange(tokens, device=device) % 512
    angle = position[:, None] / 10_000 ** (torch.arange(0, size, 2, device=device) / size)
    cos, sin = (x.to(dtype) for x in (angle.cos(), angle.sin()))
    parameters = {"plain": (), "norm": (size, size), "bias": (width,)}[shape.variant]
    names = {"plain": (), "norm": ("q_weight", "k_weight"), "bias": ("bias",)}[shape.variant]

    def inputs() -> Tensors:
        drawn = tuple(torch.randn(n, device=device, dtype=dtype) for n in parameters)
        return (torch.randn(tokens, width, device=device, dtype=dtype), *drawn)

    def of(op: Callable[..., Any]) -> Callable[..., Any]:
        def call(qkv: torch.Tensor, *given: torch.Tensor) -> Any:
            options = dict(zip(names, given, strict=True))
            turn = (x.to(qkv.dtype) for x in (cos, sin))
            return op(qkv, *turn, heads=heads, kv_heads=kv_heads, eps=EPS, **options)

        return call

    def with_liger() -> Implementation:
        if shape.variant != "plain":
            raise Unavailable("supports neither a norm nor a bias")
        call = liger("liger_rope")
        whole = [x.repeat(1, 2)[None] for x in (cos, sin)]  # repeated to the width of a head

        def prepare(tensors: Tensors) -> Tensors:  # [1, heads, T, d] each, transformers' layout
            parts = torch.split(tensors[0], [heads * size, kv_heads * size, kv_heads * size], dim=1)
            return tuple(x.reshape(1, tokens, -1, size).transpose(1, 2) for x in parts)

        return Implementation(
            call=lambda q, k, v: (*call(q, k, *whole), v),
            prepare=prepare,
            restore=lambda outputs: tuple(x[0].transpose(0, 1) for x in outputs),
        )

    makers: Makers = {
        **against(of(rope), of(rope_reference)),
        "Liger": with_liger,
    }
    return Workload(
        op="rope",
        shape=shape,
        inputs=inputs,
        gradients=1 + len(parameters),
        reference=lambda *tensors: as_tuple(of(rope_reference)(*tensors)),
        implementations=makers,
        bytes=bytes_of_rope(tokens, heads, kv_heads, size, dtype.itemsize, variant=shape.variant),
    )


def pooling_workload(shape: Shape, device: str, dtype: torch.dtype) -> Workload:
    """Measure pooling as the fused path calls it: with the residual and the last norm; normalized float32 vectors."""
    lengths = shape.lengths
    ends = list(itertools.accumulate(lengths))
    spans = torch.tensor(list(zip([0, *ends[:-1]], ends, strict=True)))
    counts = torch.tensor(lengths, device=device)
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts)
    last = torch.tensor(ends, device=device) - 1
    size = (sum(lengths), shape.width)

    def inputs() -> Tensors:
        states = (torch.randn(size, device=device, dtype=dtype) for _ in range(2))
        return (*states, torch.randn(shape.width, device=device, dtype=dtype))

    def of(op: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda hidden, residual, weight: op(
            hidden, spans, shape.variant, residual=residual, weight=weight, eps=EPS, normalize=True
        )

    def eager(hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Add, normalize, pool and scale to unit length in separate PyTorch operations, without padding."""
        y = F.rms_norm(hidden + residual, (shape.width,), weight, EPS)
        if shape.variant == "last":
            return F.normalize(y[last].float(), dim=-1)
        sums = torch.zeros(len(lengths), shape.width, device=device).index_add(0, owner, y.float())
        return F.normalize(sums / counts[:, None], dim=-1)

    makers: Makers = {
        "fastvec": plain(of(pool)),
        "reference": plain(of(pool_reference)),
        "PyTorch, eager": lambda: Implementation(call=lambda *tensors: (eager(*tensors),), rounds_to=dtype),
    }
    return Workload(
        op="pooling",
        shape=shape,
        inputs=inputs,
        gradients=3,
        reference=lambda *tensors: as_tuple(of(pool_reference)(*tensors)),
        implementations=makers,
        bytes=bytes_of_pool(lengths, shape.width, dtype.itemsize, mode=shape.variant),
    )
