"""Defines what is measured: an op on a shape, its implementations, and their results."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from benchmarks.ops.shapes import Shape
from fastvec_kernels._accuracy import Direction

Tensors: TypeAlias = tuple[torch.Tensor, ...]


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
        with torch.inference_mode():  # as in production: no graph, and no operator of PyTorch's around a kernel
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
