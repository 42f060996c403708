"""Compares two blocks of unit vectors, by NumPy on the CPU or by torch on a GPU, where the similarities stay.

Both kinds of arrays have the operators that `dedup` and `nearest` use; only what differs is here.

Shapes: m rows of the left block, b of the right block, D dimensions, n pairs.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fastvec.errors import UsageError
from fastvec.output.vector_column import FloatArray
from fastvec.system.float32 import full_float32

Indices = npt.NDArray[np.int64]
# a job that a CPU does in about 20 s; importing torch and moving to a GPU take a few
GPU_OPERATIONS = 2e12


class Products:
    """The comparisons on the CPU. `rows` of the left block and `columns` of the right block: 16 MiB of similarities,
    which stay in a cache until they are compared with the threshold.
    """

    rows, columns = 8192, 512

    def __init__(self) -> None:
        self._scores = np.empty(0, dtype=np.float32)
        self._mask = np.empty(0, dtype=np.bool_)

    def put(self, array: npt.NDArray[Any]) -> Any:
        """Return an array for these comparisons; on a GPU, a copy."""
        return array

    def similarities(self, left: Any, right: Any) -> Any:
        """Return the products of `left` [m, D] and `right` [b, D] as [m, b], which the next call overwrites."""
        size = len(left) * len(right)
        if len(self._scores) < size:  # kept, because the system would clear new memory for each block
            self._scores, self._mask = np.empty(size, dtype=np.float32), np.empty(size, dtype=np.bool_)
        return np.matmul(left, right.T, out=self._scores[:size].reshape(len(left), len(right)))

    def above(self, scores: Any, bounds: Any) -> Any:
        """Return where `scores` [m, b] are above `bounds`, a number or [m, 1]; the next call overwrites it."""
        return np.greater(scores, bounds, out=self._mask[: scores.size].reshape(scores.shape))

    def count(self, mask: Any) -> int:
        return int(np.count_nonzero(mask))

    def least_of_best(self, scores: Any, mask: Any, k: int) -> Any:
        """Return the k-th largest of each row's `scores` [m, b] where `mask` is true, as [m, 1]; -inf if too few."""
        place = scores.shape[1] - k
        return np.partition(np.where(mask, scores, np.float32(-np.inf)), place, axis=1)[:, place : place + 1]

    def pairs(self, scores: Any, mask: Any) -> tuple[Indices, Indices, FloatArray]:
        """Return the rows, columns and scores [n] of where `mask` [m, b] is true, in order of rows, then columns."""
        places = np.flatnonzero(mask)
        rows, columns = np.divmod(places, mask.shape[1])
        return rows, columns, scores.reshape(-1)[places]


class TorchProducts(Products):
    """The same on a device of torch."""

    rows, columns = 32_768, 8192  # 1 GiB of similarities

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def put(self, array: npt.NDArray[Any]) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def similarities(self, left: Any, right: Any) -> Any:
        with full_float32():
            return left @ right.T

    def above(self, scores: Any, bounds: Any) -> Any:
        return scores > bounds

    def count(self, mask: Any) -> int:
        return int(mask.count_nonzero())

    def least_of_best(self, scores: Any, mask: Any, k: int) -> Any:
        return scores.masked_fill(~mask, -np.inf).topk(k, dim=1).values[:, -1:]

    def pairs(self, scores: Any, mask: Any) -> tuple[Indices, Indices, FloatArray]:
        places = mask.nonzero(as_tuple=True)
        rows, columns, found = (some.cpu().numpy() for some in (*places, scores[places]))
        return rows, columns, found


def products_for(device: str, operations: float) -> Products:
    """Return the comparisons for a device: `cpu`, `cuda`, or `auto`, which is a GPU for a job of many `operations`.

    Raises UsageError for another device, and for `cuda` without a GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device {device!r} is not known: choose auto, cpu or cuda")
    if device == "cpu" or (device == "auto" and operations < GPU_OPERATIONS):
        return Products()
    import torch

    if torch.cuda.is_available():
        return TorchProducts("cuda")
    if device == "cuda":
        raise UsageError(
            "device cuda was requested, but torch finds no GPU: choose cpu, or install a CUDA build of torch"
        )
    return Products()
