"""Chooses how a CPU computes matrix products and attention: by measuring, as CPUs differ in what is fast on them.

    products    F.linear, which is MKL in float32, or oneDNN's linear: 2.3 times as fast in float32 on AMD with AVX-512
    attention   one of two routes for each length (`fastvec_kernels.attention.plan`)

Without a measurement, defaults are used. A measurement takes about 0.1 s, so it is worth it for jobs of many seconds.
Choices change how sums round, so a job that resumes must make the same ones.

Shapes: T packed tokens, D hidden size, F feed-forward size.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from fastvec.decoders.fused import FusedDecoder, Layer, Linear, floats
from fastvec.system.limits import memory_bytes
from fastvec.system.memory import is_out_of_memory
from fastvec_kernels import Activation, AttentionPlan, Fp8Rows, attention
from fastvec_kernels.attention.padded import LONGEST
from fastvec_kernels.attention.plan import Route, Routes
from fastvec_kernels.attention.torch_ops import default_routes, route_of

Choice = TypeVar("Choice")
# F.linear, oneDNN's linear, and the latter with weights kept in its own layout
Products = Literal["torch", "onednn", "packed"]

ROUNDS = 3
GAIN = 0.95  # of the default's time, the most that another choice may take to be preferred: noise changes nothing
BATCH_ROWS = 2048  # a hint to oneDNN
PACKED_SHARE = 0.25  # of the memory, the largest weights that are kept a second time
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


KINDS: dict[Products, type[Linear]] = {"torch": Linear, "onednn": OnednnLinear, "packed": PackedLinear}


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
    bias = torch.linspace(-1, 1, 16).to(dtype)
    gate, up = F.linear(x.double(), weight.double(), bias.double()).chunk(2, dim=1)
    expected = F.silu(gate) * up
    tolerance = max(2 * torch.finfo(dtype).eps, 1e-5)  # oneDNN approximates the exponential function
    try:
        with torch.inference_mode():
            found = [kind(weight, bias).gated(x, "silu").double() for kind in (OnednnLinear, PackedLinear)]
    except (AttributeError, RuntimeError) as error:  # torch built without oneDNN, or no products of this dtype
        if is_out_of_memory(error):  # other vectors, because memory was short now, would be a surprise
            raise
        return False
    return all(bool((one - expected).norm() <= tolerance * expected.norm()) for one in found)


@functools.cache
def bfloat16_is_faster() -> bool:
    """Return whether this CPU multiplies in bfloat16 at least as fast as in float32, each in the fastest way.

    It is part of what identifies a job, so it must not depend on what else the machine does: the CPU time of a single
    thread is compared. Of CPUs with instructions for bfloat16, AMD's take half the time of float32, and an Intel Xeon
    without AMX twice the time; without such instructions it is several times as much.
    """
    runs = {}
    for dtype in (torch.bfloat16, torch.float32):
        weight, x = torch.ones(PROBE, PROBE, dtype=dtype), torch.ones(PRODUCT_ROWS, PROBE, dtype=dtype)
        linear = (PackedLinear if has_onednn(dtype) else Linear)(weight, None)
        runs[dtype] = functools.partial(linear, x)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return faster(runs, default=torch.bfloat16, clock=time.thread_time) == torch.bfloat16
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuChoices:
    """How the linear maps and the attention of a fused decoder are computed on a CPU."""

    products: Products
    routes: Routes

    @classmethod
    def default(cls, decoder: FusedDecoder) -> Self:
        """Return the choices that are made without measuring. Raises TypeError if `decoder` is quantized."""
        dtype = _example(decoder).weight.dtype
        products: Products = "torch"
        if has_onednn(dtype):
            products = "packed" if decoder.linear_bytes <= PACKED_SHARE * memory_bytes() else "onednn"
        return cls(products=products, routes=default_routes(dtype))

    @classmethod
    def measured(cls, decoder: FusedDecoder, longest: int) -> Self:
        """Return what is faster on this CPU for the shapes of `decoder` and sequences of up to `longest` tokens.

        Raises TypeError if `decoder` is quantized.
        """
        default, weight = cls.default(decoder), _example(decoder).weight[:PRODUCT_COLUMNS]
        products = default.products
        if products != "torch":
            x = _random(PRODUCT_ROWS, weight.shape[1], dtype=weight.dtype)
            candidates: tuple[Products, ...] = (products, "torch")
            runs = {choice: functools.partial(KINDS[choice](weight, None), x) for choice in candidates}
            products = faster(runs, default=products, clock=time.perf_counter)
        how = decoder.layers[0].attending
        if how.softcap is not None or how.sinks is not None:  # neither route is taken
            return cls(products=products, routes=default.routes)
        routes = []
        for length, limit in LENGTHS:
            routes.append((limit, _faster_route(decoder.layers[0], min(length, longest), weight.dtype)))
            if longest <= limit:
                break
        return cls(products=products, routes=tuple(routes))

    @classmethod
    def from_json(cls, choices: Mapping[str, Any]) -> Self:
        """Return the choices that `to_json` gave."""
        return cls(products=choices["products"], routes=tuple((limit, route) for limit, route in choices["routes"]))

    def __str__(self) -> str:
        after = [*(route for _, route in self.routes[1:]), None]
        last = [pair for pair, route in zip(self.routes, after, strict=False) if pair[1] != route]
        attention = ", ".join(f"{route} up to {limit:,} tokens" for limit, route in last)
        return f"products: {self.products}; attention: {attention or 'runs'}"

    def to_json(self) -> dict[str, Any]:
        return {"products": self.products, "routes": [list(pair) for pair in self.routes]}

    def apply(self, decoder: FusedDecoder) -> FusedDecoder:
        """Return `decoder` with these choices, but not with oneDNN's linear where it does not run."""
        example = decoder.layers[0].gate_up
        if isinstance(example, Linear):
            kind = KINDS[self.products] if has_onednn(example.weight.dtype) else Linear
            if type(example) is not kind:
                decoder = decoder.with_linears(kind)
        return decoder.with_routes(self.routes)


def _example(decoder: FusedDecoder) -> Linear:
    """Return the largest linear map of the first layer; raise TypeError if it is quantized."""
    example = decoder.layers[0].gate_up
    if not isinstance(example, Linear):
        raise TypeError("choices are made for an unquantized decoder")
    return example


def _random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _faster_route(layer: Layer, length: int, dtype: torch.dtype) -> Route:
    """Time attention over sequences of unequal length, up to `length`, as batches of sorted texts have them."""
    group, size = layer.heads // layer.kv_heads, layer.head_size
    kv_heads = min(layer.kv_heads, max(1, ATTENTION_HEADS // group))
    count = max(2, ATTENTION_TOKENS // length)
    lengths = np.linspace(length, -(-length * 3 // 4), count).astype(int).tolist()
    q, k, v = (_random(sum(lengths), number, size, dtype=dtype) for number in (kv_heads * group, kv_heads, kv_heads))
    how = layer.attending
    candidates: dict[Route, Callable[[], torch.Tensor]] = {}
    for route in ("runs", "padded"):
        plan = AttentionPlan.build(lengths, routes=((length, route),))
        candidates[route] = functools.partial(
            attention, q, k, v, plan, scale=how.scale, causal=how.causal, window=how.window
        )
    return faster(candidates, default=route_of(length, dtype), clock=time.perf_counter)


def faster(candidates: Mapping[Choice, Callable[[], object]], *, default: Choice, clock: Callable[[], float]) -> Choice:
    """Return the candidate that is fastest by `clock`; another than the `default` only if it is clearly faster."""
    times = dict.fromkeys(candidates, float("inf"))
    for _ in range(1 + ROUNDS):  # the first round also compiles
        for choice, run in candidates.items():
            started = clock()
            run()
            times[choice] = min(times[choice], clock() - started)
    best = min(times, key=times.__getitem__)
    return best if times[best] < GAIN * times[default] else default
