"""Kernel launches: the one module that handles devices, Triton's interpreter and compilation without a GPU.

`launch` launches every kernel, with the configuration for `architecture`, so that a machine without a GPU can compile
exactly what a GPU would run: inside `compiling_for`, every op takes its kernels and compiles each launch instead of
running it.
Without Triton (macOS, Windows), `triton` and `tl` are stubs: kernels are defined but never run.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = SimpleNamespace(jit=lambda kernel=None, **_: kernel or (lambda kernel: kernel))
    tl = SimpleNamespace(constexpr=None)
    HAS_TRITON = False
else:
    HAS_TRITON = True

__all__ = [
    "INTERPRETED",
    "architecture",
    "call",
    "ceil_div",
    "compiling_for",
    "kernels_on_cpu",
    "launch",
    "operator",
    "records_gradient",
    "runs_triton",
    "set_descriptor_allocator",
    "tl",
    "to_device",
    "to_host",
    "triton",
]

INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"  # Triton decides this when a kernel is defined
# The architectures in the configuration tables, and the shared memory available to a program on each, in bytes. sm_80
# has the 99 KiB of its consumer siblings sm_86 and sm_89, which share its row.
SHARED_MEMORY = {"sm_80": 101_376, "sm_120": 101_376, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}

_functions: dict[Any, Callable[..., Any]] = {}  # by operator, the function that it wraps
_kept: dict[Any, tuple[Any, tuple[Any, ...]]] = {}  # by kernel and what it is specialized on: compiled, constants
_kernels_on_cpu = False
_compiling: "CompileOnly | None" = None


@contextmanager
def kernels_on_cpu() -> Iterator[None]:
    """Run the kernels on CPU tensors too, in Triton's interpreter; kernel tests use this.

    Outside the block CPU tensors take PyTorch operations, as on any machine without a GPU.
    Raises RuntimeError if the kernels were not defined for the interpreter.
    """
    global _kernels_on_cpu
    if not INTERPRETED:
        raise RuntimeError("set TRITON_INTERPRET=1 before importing fastvec_kernels to run kernels on a CPU")
    before, _kernels_on_cpu = _kernels_on_cpu, True
    try:
        yield
    finally:
        _kernels_on_cpu = before


class CompileOnly:
    """Replacement for Triton's GPU driver that has a target to compile for but cannot launch kernels."""

    def __init__(self, architecture: str) -> None:
        from triton.backends.compiler import GPUTarget

        cuda = architecture.startswith("sm_")
        self.architecture = architecture
        self.target = GPUTarget("cuda", int(architecture[3:]), 32) if cuda else GPUTarget("hip", architecture, 64)
        self.compiled: list[tuple[str, Any]] = []  # (kernel's name, Triton's CompiledKernel) of each launch

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> str:
        return self.architecture  # part of Triton's cache key, so that targets do not share compiled kernels

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def compiling_for(architecture: str) -> Iterator[CompileOnly]:
    """Compile what the ops in this block would launch on `architecture`, a key of SHARED_MEMORY; launch nothing.

    Tensors may be on any device; the tensors that an op returns in this block are uninitialized.
    Raises RuntimeError without Triton or if the kernels were defined for the interpreter, and ValueError for another
    architecture.
    """
    global _compiling
    if INTERPRETED or not HAS_TRITON:
        raise RuntimeError("compiling needs Triton, and TRITON_INTERPRET unset when fastvec_kernels is imported")
    if architecture not in SHARED_MEMORY:
        raise ValueError(f"cannot compile kernels for {architecture}: choose one of {', '.join(SHARED_MEMORY)}")
    from triton.runtime import driver

    _compiling = CompileOnly(architecture)
    driver.set_active(_compiling)
    try:
        yield _compiling
    finally:
        _compiling = None
        driver._active = None  # reset_active would look for a GPU


def runs_triton(x: torch.Tensor) -> bool:
    """Return whether Triton kernels, not PyTorch operations, handle `x` in this process."""
    if not HAS_TRITON:
        return False
    if _kernels_on_cpu or _compiling is not None:
        return x.dtype != torch.float64
    return x.is_cuda and x.dtype != torch.float64 and architecture(x.device) is not None


def architecture(device: torch.device) -> str | None:
    """Return the row of the configuration tables for `device`: a key of SHARED_MEMORY, or None if a GPU has none.

    The interpreter takes the row of sm_90: it runs the same programs, tile by tile.
    """
    if _compiling is not None:
        return _compiling.architecture
    return _architecture_of_gpu(device) if device.type == "cuda" else "sm_90"


@lru_cache  # every op of every layer asks
def _architecture_of_gpu(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        return name if name in SHARED_MEMORY else None
    return {8: "sm_80", 9: "sm_90", 10: "sm_100", 12: "sm_120"}.get(torch.cuda.get_device_capability(device)[0])


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run `kernel` with `grid` programs on the device of the first of `args`, a tensor.

    A forward is some 200 launches. Triton takes most of a launch's time on the host to find the compiled kernel again
    (24 of 32 µs for a kernel of 9 arguments), so the compiled kernels are kept here, by a key that is at least as fine
    as Triton's own.
    """
    options.setdefault("enable_fp_fusion", True)  # Triton's default until 3.10; 3.9 warns if it is not given
    if _compiling is not None:
        _compiling.compiled.append((kernel.__name__, kernel.warmup(*args, grid=grid, **options)))
    elif args[0].is_cuda and args[0].get_device() != torch.cuda.current_device():
        with torch.cuda.device(args[0].device):
            _launch_here(kernel, grid, args, options)
    else:
        _launch_here(kernel, grid, args, options)


def _launch_here(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Run `kernel` on the current device."""
    if INTERPRETED or torch.version.hip is not None:  # on AMD, Triton also specializes on the size of each tensor
        kernel[grid](*args, **options)
        return
    key = (id(kernel), args[0].get_device(), *options, *options.values(), *specialization(args))
    kept = _kept.get(key)
    if kept is None:
        if any(parameter.is_constexpr for parameter in kernel.params[: len(args)]):
            raise TypeError(f"constants of {kernel.__name__} must be given by name: their values are part of the key")
        compiled = kernel[grid](*args, **options)
        _kept[key] = compiled, tuple(options[name] for name in kernel.arg_names[len(args) :])
        return
    compiled, constants = kept
    compiled[(*grid, 1, 1)[:3]](*args, *constants)


def specialization(args: tuple[Any, ...]) -> list[Any]:
    """Return what Triton compiles the arguments of a kernel for, or something finer.

    That is the dtype of a tensor and whether its address is a multiple of 16, and of an integer its size in bits,
    whether it is 1, and whether it is a multiple of 16.
    """
    found: list[Any] = []
    for x in args:
        kind = type(x)
        if kind is int:
            found.append(x if -1 <= x <= 1 else (x % 16, -(2**31) <= x < 2**31, x < 2**63))
        elif isinstance(x, tuple):
            found += specialization(x)
        elif x is None or kind is float:
            found.append(kind)
        else:
            found.append(x.dtype)
            found.append(x.data_ptr() % 16)
    return found


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Define a custom operator like `torch.library.custom_op`, which `call` may bypass."""

    def define(function: Callable[..., Any]) -> Any:
        defined = torch.library.custom_op(name, function, mutates_args=())
        _functions[defined] = function
        return defined

    return define


def call(defined: Any, *args: Any) -> Any:
    """Call an operator; in inference mode, without torch.compile, call the function that it wraps.

    The first call through an operator imports the compiler, which takes almost two seconds, and the overhead of each
    call is as long as a kernel launch. In inference mode autograd does not need the operator.
    """
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        return _functions[defined](*args)
    return defined(*args)


def records_gradient(*tensors: torch.Tensor | None) -> bool:
    """Return whether autograd records an operation on these tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def set_descriptor_allocator(device: torch.device) -> None:
    """Set the allocator from which Triton takes memory for tensor descriptors, for the next launches on `device`."""
    if device.type == "cuda":
        triton.set_allocator(lambda size, _alignment, _stream: torch.empty(size, dtype=torch.int8, device=device))


def to_device(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """Copy `array` to `device` from pinned memory: a copy from pageable memory waits for all work queued there."""
    x = torch.from_numpy(array)
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def to_host(*tensors: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.cuda.Event | None]:
    """Start copying `tensors` to the host; the copies are complete when the returned event is done (None on a CPU).

    Waiting for the event does not wait for work that the device receives later.
    """
    if not tensors[0].is_cuda:
        return tensors, None
    copies = tuple(torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in tensors)
    for copy, x in zip(copies, tensors, strict=True):
        copy.copy_(x, non_blocking=True)
    done = torch.cuda.Event(blocking=True)  # waiting sleeps instead of spinning: other threads need the core
    done.record(torch.cuda.current_stream(tensors[0].device))
    return copies, done


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up; triton.cdiv takes 3 µs on the host."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
