"""Opens the files that rows are read from, on a local disk or in a store.

Files of a store are read in place. Text files are streamed twice, to count their rows and to read them, as local ones
are: a local copy would need room for the corpus, and a store delivers faster than text is embedded.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import pyarrow as pa

from fastvec.errors import InputError
from fastvec.stores.remote_file import RemoteFile

READ_BYTES = 1 << 20
OPENED_AT_ONCE = 16  # files of a store: to open one takes about ten requests, one after another

File: TypeAlias = Path | RemoteFile
Item = TypeVar("Item")
Result = TypeVar("Result")


def identity(file: File) -> tuple[int, int | str]:
    """Return the size in bytes and the version: a modification time in ns, or what the store has. Raises OSError."""
    if isinstance(file, RemoteFile):
        return file.size, file.version
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def require_unchanged(file: File, size: int, version: int | str) -> None:
    """Raise InputError if the file is another one than when it was opened; of a store, this takes a request."""
    if isinstance(file, RemoteFile):
        file.require_unchanged()
    elif identity(file) != (size, version):
        raise InputError(f"{file}: changed while it was being read; run the command again")


def open_stream(file: File) -> BinaryIO:
    """Open a file for reading it from its start, or from one place on."""
    return file.open(stream=True) if isinstance(file, RemoteFile) else file.open("rb", buffering=READ_BYTES)


def open_random(file: File) -> BinaryIO:
    """Open a file for reading a few places of it."""
    return file.open(stream=False) if isinstance(file, RemoteFile) else file.open("rb")


@contextmanager
def as_native(file: File, *, stream: bool) -> Iterator[pa.NativeFile]:
    """Yield a file of pyarrow: memory-mapped if it is local."""
    if isinstance(file, RemoteFile):
        with file.open(stream=stream) as opened, pa.PythonFile(opened, mode="r") as native:
            yield native
    else:
        with pa.memory_map(os.fsencode(file)) as native:
            yield native


def for_each(function: Callable[[Item], Result], items: Sequence[Item], *, local: bool) -> list[Result]:
    """Return `function(item)` for each item, in order; unless all files are `local`, several are worked on at once."""
    if local:
        return [function(item) for item in items]
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        return list(pool.map(function, items))
