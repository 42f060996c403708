"""Makes a GPU multiply float32 in float32, whatever this process has chosen for other code."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 matrices without TF32 in this block; NVIDIA's containers turn TF32 on for all of PyTorch.

    TF32 has 10 bits of a factor: a cosine is off by up to 1e-3, more than what exact comparisons allow for.
    """
    import torch

    matmul = torch.backends.cuda.matmul
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # TF32 was chosen by `fp32_precision`, which the older setting contradicts
        chosen, matmul.fp32_precision = matmul.fp32_precision, "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = chosen
        return
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
