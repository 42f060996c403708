from typing import Any

import torch

from tests import THOROUGH


def examples(count: int) -> int:
    """Number of examples of a property: `count` on a GPU, fewer in the interpreter, where each one takes seconds.

    Every run draws new examples.
    """
    if torch.cuda.is_available():
        return count
    return count // 2 if THOROUGH else max(count // 8, 2)


def refuse(*_: Any, **__: Any) -> None:
    """Replace what a test does not allow to run."""
    raise AssertionError("this should not run")


def surrounded(x: torch.Tensor) -> torch.Tensor:
    """Return `x` [T, D] as a slice of a larger buffer full of NaN."""
    T, D = x.shape
    buffer = torch.full((T + 2, D + 16), torch.nan, dtype=x.dtype, device=x.device)
    buffer[1:-1, 8:-8] = x
    return buffer[1:-1, 8:-8]
