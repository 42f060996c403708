"""Recognizes that memory ran out, for which libraries raise errors of several types."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from fastvec.errors import OutOfMemoryError

# of PyTorch's allocator, oneDNN, C++ and Python's threads, each of which needs a stack
_MESSAGES = re.compile("DefaultCPUAllocator|could not create a (primitive|memory)|bad_alloc|can't start new thread")


@contextmanager
def translated_memory_errors() -> Iterator[None]:
    """Turn what is raised when this process gets no more memory into OutOfMemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _MESSAGES.search(str(error)):
            raise
        raise OutOfMemoryError("out of memory: free some, or allow more, and run the same command again") from error
