"""Chooses how a CPU computes matrix products and attention: by measuring, as CPUs differ in what is fast on them.

    products    F.linear, which is MKL in float32, or oneDNN's linear: 2.3 times as fast in float32 on AMD with AVX-512
    attention   one of two routes for each length (`fastvec_kernels.attention.plan`)

Without a measurement, defaults are used. A measurement takes about 0.2 s, so it is worth it for jobs of many seconds.
Choices change how sums round, so a job that resumes must make the same ones.

Shapes: T packed tokens, D hidden size, F feed-forward size.
"""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from fastvec.decoders.fused import FusedDecoder, Linear, floats
from fastvec_kernels import Activation, AttentionPlan, Fp8Rows, attention
from fastvec_kernels.attention.padded import LONGEST
from fastvec_kernels.attention.plan import Route, Routes
from fastvec_kernels.attention.torch_ops import default_routes

Choice = TypeVar("Choice")

ROUNDS = 3
GAIN = 0.95  # of the default's time, the most that another choice may take to be preferred: noise changes nothing
BATCH_ROWS = 2048  # a hint to oneDNN
PACKED_SHARE = 0.25  # of the machine's memory, the largest weights that are kept a second time
PRODUCT_ROWS, PRODUCT_COLUMNS = 256, 2048  # of the product that is timed, at most
PROBE = 1024  # rows and columns of the weights by which two dtypes are compared
ATTENTION_TOKENS, ATTENTION_HEADS = 1024, 8
# Lengths at which attention is timed, and up to which length the faster route is then taken.
LENGTHS = ((32, 64), (128, 256), (512, LONGEST))
# Names of the activations as oneDNN's post-operations, and their algorithms.
POST_OPERATIONS: dict[Activation, tuple[str, str]] = {
    "silu": ("swish", ""),
    "gelu_tanh": ("gelu", "tanh"),
    "gelu": ("gelu", "none"),
}


class OnednnLinear(Linear):
    """`Linear` by oneDNN, for inference on a CPU. Activations and products with another tensor take no further pass."""

    @property
    def operand(self) -> torch.Tensor:
        return self.weight

    @property
    def operands(self) -> Sequence[torch.Tensor]:
        """The weight's two halves, of gate and up."""
        return self.weight.chunk(2)

    def product(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        return _onednn(floats(x), self.operand)

    def __call__(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        return _onednn(floats(x), self.operand, self.bias)

    def add_product(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        residual.add_(_onednn(x, self.operand))

    def gated(self, x: torch.Tensor, activation: Activation) -> torch.Tensor:
        (w_gate, w_up), biases = self.operands, (None, None) if self.bias is None else self.bias.chunk(2)
        gate = _onednn(x, w_gate, biases[0], *POST_OPERATIONS[activation])
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, gate, w_up, biases[1], "mul")
        return y


class PackedLinear(OnednnLinear):
    """`OnednnLinear` that keeps a copy of the weight in oneDNN's own layout, made by the first call.

    Otherwise every product brings the weight into this layout: a tenth of the time for batches of 4,096 tokens, a
    quarter for batches of 64 (25 million parameters, bfloat16).
    """

    @functools.cached_property
    def operand(self) -> torch.Tensor:
        return _packed(self.weight)

    @functools.cached_property
    def operands(self) -> Sequence[torch.Tensor]:
        return [_packed(half) for half in self.weight.chunk(2)]


def _packed(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, BATCH_ROWS)
    return packed


def _onednn(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, post: str = "none", algorithm: str = ""
) -> torch.Tensor:
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, post, [], algorithm)
    return y


@functools.cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Return whether oneDNN's linear computes what F.linear does in `dtype` on this CPU."""
    x, weight = (torch.linspace(-1, 1, rows * 32).view(rows, 32).sin().to(dtype) for rows in (8, 16))
    try:
        found = OnednnLinear(weight, None).gated(x, "silu")
    except (AttributeError, RuntimeError):  # torch built without oneDNN, or no products of this dtype
        return False
    gate, up = F.linear(x.double(), weight.double()).chunk(2, dim=1)
    expected = F.silu(gate) * up
    error = (found.double() - expected).norm() / expected.norm()
    return bool(error <= 2 * torch.finfo(dtype).eps)


@functools.cache
def bfloat16_is_faster() -> bool:
    """Return whether this CPU multiplies in bfloat16 faster than in float32; it does if it has instructions for it."""
    runs = {}
    for dtype in (torch.bfloat16, torch.float32):
        weight, x = torch.ones(PROBE, PROBE, dtype=dtype), torch.ones(PRODUCT_ROWS, PROBE, dtype=dtype)
        linear = (OnednnLinear if has_onednn(dtype) else Linear)(weight, None)
        runs[dtype] = functools.partial(linear, x)
    with torch.inference_mode():
        return faster(runs, default=torch.bfloat16) == torch.bfloat16


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuChoices:
    """How the linear maps and the attention of a fused decoder are computed on a CPU."""

    onednn: bool
    routes: Routes

    @classmethod
    def default(cls, dtype: torch.dtype) -> Self:
        """Return the choices that are made without measuring."""
        return cls(onednn=has_onednn(dtype), routes=default_routes(dtype))

    @classmethod
    def measured(cls, decoder: FusedDecoder, dtype: torch.dtype, longest: int) -> Self:
        """Return what is faster on this CPU for the shapes of `decoder` and sequences of up to `longest` tokens."""
        layer = decoder.layers[0]
        if not (isinstance(layer.gate_up, Linear) and isinstance(layer.output, Linear)):
            raise TypeError("only an unquantized decoder is measured")
        onednn = has_onednn(dtype)
        if onednn:
            weight = layer.gate_up.weight[:PRODUCT_COLUMNS]
            x = torch.randn(PRODUCT_ROWS, weight.shape[1]).to(dtype)
            products = {kind: functools.partial(kind(weight, None), x) for kind in (PackedLinear, Linear)}
            onednn = faster(products, default=PackedLinear) is PackedLinear
        group = layer.heads // layer.kv_heads
        kv_heads = min(layer.kv_heads, max(1, ATTENTION_HEADS // group))
        size = layer.output.weight.shape[1] // layer.heads
        routes = []
        for length, limit in LENGTHS:
            route = _faster_route(min(length, longest), kv_heads * group, kv_heads, size, dtype)
            routes.append((limit, route))
            if longest <= limit:
                break
        return cls(onednn=onednn, routes=tuple(routes))

    @classmethod
    def from_json(cls, choices: Mapping[str, Any]) -> Self:
        """Return the choices that `to_json` gave."""
        return cls(onednn=choices["onednn"], routes=tuple((limit, route) for limit, route in choices["routes"]))

    def to_json(self) -> dict[str, Any]:
        return {"onednn": self.onednn, "routes": [list(pair) for pair in self.routes]}

    def apply(self, decoder: FusedDecoder) -> FusedDecoder:
        """Return `decoder` with these choices, but not with oneDNN's linear where it does not run."""
        example = decoder.layers[0].output
        kind = type(example)
        if isinstance(example, Linear):
            kind = Linear
            if self.onednn and has_onednn(example.weight.dtype):
                kind = PackedLinear if decoder.linear_bytes <= PACKED_SHARE * _memory_bytes() else OnednnLinear
        if kind is not type(example):
            decoder = decoder.with_linears(kind)
        return decoder.with_routes(self.routes)


def _memory_bytes() -> int:
    """Return the size of this machine's memory; 0 if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return 0


def _faster_route(length: int, heads: int, kv_heads: int, size: int, dtype: torch.dtype) -> Route:
    """Time attention over sequences of unequal length, up to `length`, as batches of sorted texts have them."""
    count = max(2, ATTENTION_TOKENS // length)
    lengths = np.linspace(length, -(-length * 3 // 4), count).astype(int).tolist()
    q, k, v = (torch.randn(sum(lengths), number, size).to(dtype) for number in (heads, kv_heads, kv_heads))
    candidates: dict[Route, Callable[[], torch.Tensor]] = {}
    for route in ("runs", "padded"):
        plan = AttentionPlan.build(lengths, routes=((length, route),))
        candidates[route] = functools.partial(attention, q, k, v, plan, scale=size**-0.5)
    usual: Route = next((route for limit, route in default_routes(dtype) if length <= limit), "runs")
    return faster(candidates, default=usual)


def faster(candidates: Mapping[Choice, Callable[[], object]], *, default: Choice) -> Choice:
    """Return the candidate that is fastest; another than the `default` only if it is clearly faster."""
    times = dict.fromkeys(candidates, float("inf"))
    for _ in range(1 + ROUNDS):  # the first round also compiles
        for choice, run in candidates.items():
            started = time.perf_counter()
            run()
            times[choice] = min(times[choice], time.perf_counter() - started)
    best = min(times, key=times.__getitem__)
    return best if times[best] < GAIN * times[default] else default
