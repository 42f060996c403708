"""Check, each time a model is loaded on a GPU, that the Triton kernels compute what their references compute.

A kernel that fails, or that the compiler or the driver refuses, is replaced by PyTorch's operations in this process, so
that a fault of one kernel on one GPU costs speed, not vectors. The variable FASTVEC_TORCH_OPS replaces ops in advance.
Only forward passes are checked.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from fastvec.errors import ModelError, UsageError, one_line
from fastvec.system.float32 import full_float32
from fastvec.texts.packing import Packed, pack
from fastvec_kernels import OPS, checked_kernels, torch_ops, use_torch_ops

logger = logging.getLogger(__name__)

VARIABLE = "FASTVEC_TORCH_OPS"
# One sequence in each of attention's length classes, and longer ones that need several tiles of keys. A batch that has
# none of the longer ones takes another kernel.
SHORT_LENGTHS = (1, 20, 50, 128)
LENGTHS = (*SHORT_LENGTHS, 300, 1100)


@contextmanager
def kernel_check() -> Iterator[None]:
    """Check all kernels that are called in this block, and replace those that fail.

    Raises UsageError if FASTVEC_TORCH_OPS names an unknown op, ModelError if a kernel stops the GPU.
    """
    _read_variable()
    failures: dict[str, str] = {}
    try:
        with full_float32(), checked_kernels() as failures:
            yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not failures:
            raise
        ops = ",".join(failures)
        raise ModelError(
            f"a kernel of {ops} stopped the GPU ({one_line(error)}): set {VARIABLE}={ops} to run PyTorch's operations"
        ) from None
    for op, failure in failures.items():
        logger.warning("%s runs without its kernel, which failed the check: %s", op, failure)


def _read_variable() -> None:
    asked = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    if unknown := sorted(set(asked) - set(OPS)):
        raise UsageError(f"{VARIABLE} names {', '.join(unknown)}, which is no op: choose from {', '.join(OPS)}")
    use_torch_ops(dict.fromkeys(asked, f"named by {VARIABLE}"))


def replaced_ops(device: str) -> tuple[str, ...]:
    """Return the ops that run without their kernels, although `device` has kernels for them."""
    return tuple(sorted(torch_ops())) if device == "cuda" else ()


def call_kernels(run: Callable[[Packed], object], vocabulary: int, longest: int, device: torch.device | str) -> None:
    """Call `run` on sequences of all lengths, so that `kernel_check` sees its kernels; a CPU runs none.

    What replaces a kernel may be other kernels, so `run` is called again as long as one fails.
    """
    replaced: set[str] | None = None
    while torch.device(device).type != "cpu" and replaced != set(torch_ops()):
        replaced = set(torch_ops())
        for lengths in (LENGTHS, SHORT_LENGTHS):
            run(check_sequences(lengths, vocabulary, longest, device))


def check_sequences(lengths: Sequence[int], vocabulary: int, longest: int, device: torch.device | str) -> Packed:
    """Return sequences of `lengths`, each at most `longest`, with ids from the middle of the vocabulary."""
    lengths = [min(length, longest) for length in lengths]
    ids = (np.arange(sum(lengths)) * 7 + vocabulary // 2) % vocabulary
    return pack(np.split(ids, np.cumsum(lengths)[:-1]), device=device)
