"""Recognizes that memory ran out, for which libraries raise errors of several types."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from fastvec.errors import FastvecError, OutOfMemoryError

# of PyTorch's allocator, oneDNN, C++, the system; and of Python's, Arrow's and rayon's threads, which need a stack
_MESSAGES = re.compile(
    "DefaultCPUAllocator|could not create a (primitive|memory object)$|bad_alloc|Cannot allocate memory"
    "|can't start new thread|Failed to launch worker thread|ThreadPoolBuildError"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that this process gets no more memory; a GPU's are PyTorch's OutOfMemoryError."""
    return isinstance(error, MemoryError) or _MESSAGES.search(str(error)) is not None


def _is_of_a_gpu(error: BaseException) -> bool:
    """Return whether a GPU's memory ran out, without an import of PyTorch."""
    kind = type(error)
    return kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch"


@contextmanager
def translated_memory_errors() -> Iterator[None]:
    """Turn what is raised when this process gets no more memory, or a GPU has none left, into OutOfMemoryError."""
    try:
        yield
    except FastvecError:
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        if _is_of_a_gpu(error):
            raise OutOfMemoryError(
                "the GPU is out of memory: free some, or choose --device cpu, and run the same command again"
            ) from error
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError("out of memory: free some, or allow more, and run the same command again") from error
