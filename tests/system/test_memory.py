import pytest
import torch

from fastvec.errors import OutOfMemoryError
from fastvec.system.memory import translated_memory_errors


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "the GPU is out of memory: free some, or "),
        (MemoryError(), "out of memory: free some, or allow more"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory: free some, or allow more"),
    ],
)
def test_memory_that_ran_out_is_one_line(error: Exception, message: str) -> None:
    with pytest.raises(OutOfMemoryError) as translated, translated_memory_errors():
        raise error
    assert str(translated.value).startswith(message)
    assert "\n" not in str(translated.value)


def test_other_errors_stay() -> None:
    with pytest.raises(RuntimeError, match="shapes"), translated_memory_errors():
        raise RuntimeError("shapes")
