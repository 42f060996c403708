"""Settings of the C library's memory allocator."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 512 << 20
LARGEST_HEAP_BLOCK = 32 << 20  # glibc refuses more


def keep_freed_memory() -> None:
    """Let glibc keep up to 512 MiB of freed memory, which it otherwise returns to the system after each large tensor.

    On a CPU, a forward frees and allocates the same megabytes again and again, and the page faults of memory that the
    system has to clear took up to a fifth of its time. Other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows has no CDLL(None)
        return
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)
