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


@contextmanager
def translated_memory_errors() -> Iterator[None]:
    """Turn what is raised when this process gets no more memory into OutOfMemoryError."""
    try:
        yield
    except FastvecError:
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError("out of memory: free some, or allow more, and run the same command again") from error
