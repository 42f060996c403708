"""Where and how kernels run: the one place that knows about devices, the interpreter and compiling without a GPU.

A kernel is launched by `launch` and chosen by `architecture`, so that a machine without a GPU can compile exactly what
a GPU would run: under `compiling_for`, every op takes its kernels and compiles each launch instead of making it.
Without Triton (macOS, Windows) `triton` and `tl` are stand-ins: kernels are defined, and never run.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    "compiling_for",
    "kernels_on_cpu",
    "launch",
    "needs_scratch",
    "operator",
    "runs_triton",
    "tl",
    "to_device",
    "to_host",
    "triton",
]

INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"  # decided when a kernel is defined
# What the configuration tables have a row for, and the shared memory a program may have there, in bytes. sm_80's is the
# 99 KiB of its consumer siblings sm_86 and sm_89, which share its row.
SHARED_MEMORY = {"sm_80": 101_376, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}

_functions: dict[Any, Callable[..., Any]] = {}  # of each operator, what it was made of
_kernels_on_cpu = False
_compiling: "CompileOnly | None" = None


@contextmanager
def kernels_on_cpu() -> Iterator[None]:
    """Send CPU tensors to the kernels too, in Triton's interpreter; tests of kernels use this.

    Elsewhere CPU tensors take PyTorch's operations, which is what a machine without a GPU runs.
    Raises RuntimeError where the kernels were not defined for the interpreter.
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
    """Stands in for Triton's GPU driver: it knows its target, and nothing can be launched on it."""

    def __init__(self, architecture: str) -> None:
        from triton.backends.compiler import GPUTarget

        cuda = architecture.startswith("sm_")
        self.architecture = architecture
        self.target = GPUTarget("cuda", int(architecture[3:]), 32) if cuda else GPUTarget("hip", architecture, 64)
        self.compiled: list[tuple[str, Any]] = []  # (kernel's name, triton's CompiledKernel), a launch each

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> str:
        return self.architecture  # a key of triton's caches: a kernel compiled for another target is not found again

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def compiling_for(architecture: str) -> Iterator[CompileOnly]:
    """Compile what the ops in this block would launch on `architecture`, a key of SHARED_MEMORY; launch nothing.

    Tensors may be anywhere; what an op returns in this block is uninitialised.
    Raises RuntimeError where the kernels were defined for the interpreter, ValueError for another architecture.
    """
    global _compiling
    if INTERPRETED or not HAS_TRITON:
        raise RuntimeError("compiling needs Triton, and TRITON_INTERPRET unset when fastvec_kernels is imported")
    if architecture not in SHARED_MEMORY:
        raise ValueError(f"kernels are compiled for {', '.join(SHARED_MEMORY)}, not {architecture}")
    from triton.runtime import driver

    _compiling = CompileOnly(architecture)
    driver.set_active(_compiling)
    try:
        yield _compiling
    finally:
        _compiling = None
        driver._active = None  # reset_active would look for a GPU


def runs_triton(x: torch.Tensor) -> bool:
    """Whether kernels, not PyTorch's operations, handle `x` in this process."""
    if not HAS_TRITON:
        return False
    if _kernels_on_cpu or _compiling is not None:
        return x.dtype != torch.float64
    return x.is_cuda and x.dtype != torch.float64 and architecture(x.device) is not None


def architecture(device: torch.device) -> str | None:
    """The row of the configuration tables for `device`: a key of SHARED_MEMORY, or None for a GPU without one.

    The interpreter reads sm_90's row: it runs the same programs, tile by tile.
    """
    if _compiling is not None:
        return _compiling.architecture
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        return name if name in SHARED_MEMORY else None
    return {8: "sm_80", 9: "sm_90", 10: "sm_100", 12: "sm_80"}.get(torch.cuda.get_device_capability(device)[0])


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run `kernel` on `grid` programs; the first of `args` is a tensor on the device it runs on."""
    options.setdefault("enable_fp_fusion", True)  # Triton's default until 3.10; unsaid, 3.9 warns
    if _compiling is not None:
        _compiling.compiled.append((kernel.__name__, kernel.warmup(*args, grid=grid, **options)))
    elif args[0].is_cuda and args[0].device.index != torch.cuda.current_device():
        with torch.cuda.device(args[0].device):
            kernel[grid](*args, **options)
    else:
        kernel[grid](*args, **options)


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """As `torch.library.custom_op`, for an operator that `call` may pass by."""

    def define(function: Callable[..., Any]) -> Any:
        defined = torch.library.custom_op(name, function, mutates_args=())
        _functions[defined] = function
        return defined

    return define


def call(defined: Any, *args: Any) -> Any:
    """What an operator gives; in inference by its function, where neither autograd nor the compiler looks on.

    A first call of the operator imports the compiler, nearly two seconds, and each takes as long as a launch.
    """
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        return _functions[defined](*args)
    return defined(*args)


def needs_scratch(device: torch.device) -> None:
    """Let the next launches on `device` make tensor descriptors there, for which Triton asks for memory."""
    if device.type == "cuda":
        triton.set_allocator(lambda size, _alignment, _stream: torch.empty(size, dtype=torch.int8, device=device))


def to_device(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """`array` on `device`; from pinned memory, as a copy from other memory waits for all that the device was given."""
    x = torch.from_numpy(array)
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def to_host(x: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """`x` on the host, where it is once the event is done; waiting for that waits for nothing the device got later."""
    if not x.is_cuda:
        return x, None
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    done = torch.cuda.Event(blocking=True)  # it sleeps: others need the core
    done.record()
    return host, done


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def warps_for(block_size: int) -> int:
    """Warps for a program that holds `block_size` elements in fp32: at most 16 elements a thread, 4 to 16 warps."""
    return min(max(block_size // 512, 4), 16)
