"""Defines what is measured: an op on a shape, its implementations, and the check of their results."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from benchmarks.ops.shapes import Direction, Shape

Tensors: TypeAlias = tuple[torch.Tensor, ...]

# The allowed relative error of a row (a token's outputs or gradients) against the float32 reference, in units of the
# dtype's eps. bf16's eps is 2^-7: one rounding costs a quarter of it on average, and a backward pass also multiplies
# rounded scores.
TOLERANCE: dict[Direction, float] = {"forward": 2.0, "backward": 4.0}
FLOAT32_TOLERANCE = 2e-5  # the error of float32 sums over thousands of tokens in another order
SMALL_ROW = 1 / 16  # times the rows' root mean square norm; errors of smaller rows are relative to this


class Unavailable(Exception):
    """An implementation is not installed or does not support this shape; the message says why."""


def optional(module: str) -> Any:
    """Import an optional module; raise Unavailable if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Unavailable("not installed") from None


def same(tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Implementation:
    """One way to compute an op, in its own layout. The change of layout is not timed, and its bytes are not counted."""

    call: Callable[..., Tensors]  # takes the result of `prepare`
    prepare: Callable[[Tensors], Tensors] = same  # converts the workload's inputs; differentiable
    restore: Callable[[Tensors], Tensors] = same  # converts to the workload's outputs; differentiable
    rounds_to: torch.dtype = torch.float32  # dtype of intermediate results, if narrower than the results'


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """An op on a shape, with its implementations and the bytes and FLOPs it needs."""

    op: str
    shape: Shape
    inputs: Callable[[], Tensors]  # returns a new set of random inputs
    gradients: int  # how many of the first inputs have gradients; 0: no backward
    reference: Callable[..., Tensors]  # takes float32 inputs
    implementations: Mapping[str, Callable[[], Implementation]]  # makers, which may raise Unavailable
    bytes: Mapping[Direction, int]  # useful bytes
    flops: Mapping[Direction, float] | None = None  # useful FLOPs; None if matrix products are not the bound


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """The results of the reference on `inputs`."""

    inputs: Tensors
    outputs: Tensors
    upstream: Tensors  # dL/d(output), in the inputs' dtype
    gradients: Tensors


def expect(workload: Workload, inputs: Tensors) -> Expected:
    """Run the reference in float32: forward and, if the workload has gradients, backward."""
    wide = [x.detach().float() if x.is_floating_point() else x for x in inputs]
    leaves = [x.requires_grad_() for x in wide[: workload.gradients]]
    outputs = workload.reference(*wide)
    if not leaves:
        return Expected(inputs=inputs, outputs=outputs, upstream=(), gradients=())
    upstream = tuple(torch.randn_like(x).to(inputs[0].dtype) for x in outputs)
    gradients = torch.autograd.grad(outputs, leaves, tuple(x.float() for x in upstream))
    return Expected(
        inputs=inputs, outputs=tuple(x.detach() for x in outputs), upstream=upstream, gradients=tuple(gradients)
    )


class Run:
    """An implementation on a set of inputs, which a measurement calls repeatedly."""

    def __init__(self, implementation: Implementation, workload: Workload, inputs: Tensors, upstream: Tensors) -> None:
        self._implementation = implementation
        self._inputs = [x.detach() for x in inputs]
        self._differentiated = [x.requires_grad_() for x in self._inputs[: workload.gradients]]
        self._upstream = upstream
        self._prepared = implementation.prepare(tuple(self._inputs))
        self._own = [x.detach().requires_grad_(x.requires_grad) for x in self._prepared]
        self._leaves = [x for x in self._own if x.requires_grad]
        self._outputs: Tensors = ()
        self._own_upstream: Tensors = ()

    def forward(self) -> Tensors:
        with torch.no_grad():
            return self._implementation.call(*self._own)

    def prepare_backward(self) -> None:
        """Run forward with a graph, and convert the upstream gradients to the implementation's layout."""
        self._outputs = self._implementation.call(*self._own)
        own = tuple(x.detach().requires_grad_() for x in self._outputs)  # leaves: an output may depend on another
        self._own_upstream = torch.autograd.grad(self._implementation.restore(own), own, self._upstream)

    def backward(self) -> Tensors:
        return torch.autograd.grad(self._outputs, self._leaves, self._own_upstream, retain_graph=True)

    def result(self, direction: Direction) -> Tensors:
        """Return the outputs or, for backward, the gradients, in the workload's layout like the reference's."""
        if direction == "forward":
            return self._implementation.restore(self.forward())
        prepared = [x for x in self._prepared if x.requires_grad]
        return torch.autograd.grad(prepared, self._differentiated, self.backward(), retain_graph=True)


def worst_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest relative error of a row. Rows are along the first axis; a vector is one row."""
    rows = (expected.flatten(1) if expected.ndim > 1 else expected[None]).float()
    result = result.detach().float().reshape(rows.shape)
    norm = rows.norm(dim=1)
    least = SMALL_ROW * norm.square().mean().sqrt()
    error = (result - rows).norm(dim=1)
    return float((error / torch.maximum(norm, least).clamp(min=1e-30)).max())


def check(
    result: Tensors, expected: Tensors, direction: Direction, rounds_to: torch.dtype = torch.float32
) -> tuple[float, str | None]:
    """Return the worst error, and a description of the failure or None."""
    if [x.shape for x in result] != [x.shape for x in expected]:
        return float("nan"), f"shapes {[tuple(x.shape) for x in result]}, not {[tuple(x.shape) for x in expected]}"
    worst, failure = 0.0, None
    for x, y in zip(result, expected, strict=True):
        eps = max(torch.finfo(x.dtype).eps, torch.finfo(rounds_to).eps)
        allowed = max(TOLERANCE[direction] * eps, FLOAT32_TOLERANCE)
        error = worst_error(x, y)
        if not error <= allowed:  # a NaN fails too
            failure = f"error {error:.2e}, allowed {allowed:.2e}"
        worst = max(worst, error) if error == error else error
    return worst, failure
