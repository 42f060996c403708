"""Which ops run as Triton kernels, and a check of the kernels against the references.

Every public op is defined with `op`. `use_torch_ops` sends ops to PyTorch's operations in this process, and
`rope_attention` and `gated_linear` to the two ops of which each consists. Inside
`checked_kernels`, each call of a kernel is compared with its op's reference on the same inputs.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

import torch

from fastvec_kernels._accuracy import compare
from fastvec_kernels._launch import runs_triton

# geglu is swiglu's kernel
OPS = ("attention", "dropout", "gated_linear", "pool", "quantize_rows", "rms_norm", "rope", "rope_attention", "swiglu")

Arguments = ParamSpec("Arguments")
Output = TypeVar("Output")

_on_torch: dict[str, str] = {}  # op -> why it does not run as a kernel
_failures: dict[str, str] | None = None  # inside `checked_kernels`: op -> how its kernel failed


def use_torch_ops(reasons: Mapping[str, str]) -> None:
    """Run these ops on PyTorch's operations from now on; each has a reason. Raises ValueError for an unknown op."""
    if unknown := reasons.keys() - set(OPS):
        raise ValueError(f"there is no op named {', '.join(sorted(unknown))}: choose from {', '.join(OPS)}")
    _on_torch.update(reasons)


def torch_ops() -> Mapping[str, str]:
    """Return the ops that `use_torch_ops` was called with, and the reason of each."""
    return MappingProxyType(_on_torch)


def uses_kernel(name: str, x: torch.Tensor) -> bool:
    """Return whether op `name` handles `x` with a Triton kernel, as far as device and dtype decide."""
    return name not in _on_torch and runs_triton(x)


@contextmanager
def checked_kernels() -> Iterator[dict[str, str]]:
    """Compare every kernel called in this block with its op's reference; yield a dict that gets the failures by op.

    A kernel that fails is replaced from then on, as by `use_torch_ops`. In this block, ops whose kernels run return the
    reference's result, so that a wrong kernel does not affect what comes after it. Results in int8 and uint8 are not
    compared.
    """
    global _failures
    before, _failures = _failures, {}
    try:
        yield _failures
    finally:
        _failures = before


def op(
    name: str, reference: Callable[Arguments, Output]
) -> Callable[[Callable[Arguments, Output]], Callable[Arguments, Output]]:
    """Define a public op with its reference implementation, which takes the same arguments."""

    def define(function: Callable[Arguments, Output]) -> Callable[Arguments, Output]:
        @functools.wraps(function)
        def called(*args: Arguments.args, **options: Arguments.kwargs) -> Output:
            if _failures is None:
                return function(*args, **options)
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            if not any(uses_kernel(name, x) for x in tensors):
                return function(*args, **options)
            with torch.autocast(tensors[0].device.type, enabled=False):  # the inputs determine the dtype
                expected = reference(*args, **options)
            failure = _failure(lambda: function(*args, **options), expected)
            if failure is not None:
                _failures[name] = _on_torch[name] = failure
            return expected

        # torch.compile limits the recompilations of a code object, so every op needs its own
        with_code: Any = called
        with_code.__code__ = with_code.__code__.replace(co_name=function.__name__)
        return called

    return define


def _failure(call: Callable[[], Any], expected: Any) -> str | None:
    wanted = expected if isinstance(expected, tuple) else (expected,)
    try:
        result = call()
        found = result if isinstance(result, tuple) else (result,)
        if not all(x.is_floating_point() for x in wanted):
            return None
        return compare(found, wanted)[1]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the compiler or the driver raises, the op has another implementation
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
