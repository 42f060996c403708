"""The few system calls that an output is made with, and their errors as one line for the user.

Everything that changes a disk goes through `os`, call by call, so that a test can kill the process at each of them.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastvec.errors import DiskFullError, OutputError, RefusedError

if sys.platform != "win32":
    import fcntl

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def explained(output: Path, safe_rows: int = 0) -> Iterator[None]:
    """Turn an OSError into DiskFullError or OutputError, which say how much of `output` is durable."""
    try:
        yield
    except OSError as error:
        safe = f"; its first {safe_rows} rows are safe" if safe_rows else ""
        if error.errno in _DISK_FULL:
            message = f"no space left for {output}{safe}: make room and run the same command again"
            raise DiskFullError(message) from error
        raise OutputError(f"{error.filename or output}: {error.strerror or error}{safe}") from error


def open_file(path: Path, flags: int) -> int:
    return os.open(path, flags | _BINARY, 0o666)


def write_at(fd: int, offset: int, data: Any) -> None:
    """Write all of `data` at `offset`, so that trying again after an error never leaves a gap or a double.

    Raises OSError, with part of `data` perhaps written.
    """
    os.lseek(fd, offset, os.SEEK_SET)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: files created, renamed and deleted there."""
    if sys.platform == "win32":  # cannot open a folder; NTFS journals its names itself
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    """Make the files below `folder` durable, as others wrote them."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY | _BINARY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    sync_folder(folder)


def write_durably(path: Path, text: str) -> None:
    """All of `path` or nothing, also after a power cut."""
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; raises RefusedError where a running process holds it."""
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        lock(fd, path)
        yield
    finally:
        os.close(fd)


def lock(fd: int, path: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RefusedError(f"{path} is locked by a running process: wait for it, or give another output") from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):  # some network file systems have no locks
            raise
