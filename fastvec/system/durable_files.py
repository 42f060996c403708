"""The system calls that write an output, with their errors turned into one line for the user.

An embedding output is changed only by calls to functions of `os`, so that a test can kill the process at each call.
"""

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from fastvec.errors import DiskFullError, FastvecError, OutputError, RefusedError

if sys.platform != "win32":
    import fcntl

_BINARY = getattr(os, "O_BINARY", 0)  # otherwise Windows translates line endings
_POLL_SECONDS = 0.1  # how often a wait looks for a lock
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def translated_os_errors(output: Path, safe_rows: int = 0) -> Iterator[None]:
    """Turn an OSError into DiskFullError or OutputError, whose message says how many rows of `output` are durable."""
    try:
        yield
    except OSError as error:
        safe = f"; its first {safe_rows} rows are safe" if safe_rows else ""
        if error.errno in _DISK_FULL:
            message = f"no space left for {output}{safe}: make room and run the same command again"
            raise DiskFullError(message) from error
        raise OutputError(f"{error.filename or output}: {error.strerror or error}{safe}") from error


@contextmanager
def translated_library_errors(output: Path) -> Iterator[None]:
    """Do what `translated_os_errors` does, also for libraries that hide an OSError in an error of their own."""
    with translated_os_errors(output):
        try:
            yield
        except FastvecError:
            raise
        except Exception as error:
            code = re.search(r"\(os error (\d+)\)", str(error))  # of libraries in Rust, such as safetensors
            if isinstance(error.__context__, OSError):  # torch.save, after a write that failed
                raise error.__context__ from None
            if code is not None:
                raise OSError(int(code[1]), os.strerror(int(code[1]))) from None
            raise


def open_file(path: Path, flags: int) -> int:
    return os.open(path, flags | _BINARY, 0o666)


def open_locked(path: Path, *, create: bool = True, wait_seconds: float = 0.0) -> int:
    """Open the file `path` for reading and writing, and hold a lock on it until the descriptor is closed.

    Raises RefusedError if a running process holds the lock for `wait_seconds`, and OSError.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        fd = open_file(path, os.O_RDWR | (os.O_CREAT if create else 0))
        with ExitStack() as opened:
            opened.callback(os.close, fd)
            try:
                lock(fd, path)
                if _is_same_file(fd, path):  # another process may delete or rename it between open and lock
                    opened.pop_all()
                    return fd
            except RefusedError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_POLL_SECONDS)


def make_locked(path: Path, wait_seconds: float) -> int:
    """Do what `open_locked` does, and make the folder of the file.

    A process that is waited for may delete the folder: of a job's work, when the job is done.
    """
    make_folder(path.parent)
    try:
        return open_locked(path, wait_seconds=wait_seconds)
    except FileNotFoundError:
        make_folder(path.parent)
        return open_locked(path, wait_seconds=wait_seconds)


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def draft_path(target: Path) -> Path:
    return target.with_name(target.name + ".tmp")


@contextmanager
def replacing(target: Path, around: Callable[[], AbstractContextManager[None]] = nullcontext) -> Iterator[int]:
    """Yield the descriptor of an empty, locked file beside `target`; after the block it becomes `target`, durably.

    It is renamed in the context that `around` returns, which is called when it is durable.
    If the block or the context raises, the file is deleted, and `target` stays as it is. What a killed process left is
    overwritten.
    Raises RefusedError if a running process writes to the same target, and OSError.
    """
    draft = draft_path(target)
    fd = open_locked(draft)
    try:
        os.ftruncate(fd, 0)
        yield fd
        os.fsync(fd)
        if sys.platform == "win32":  # cannot rename an open file
            os.close(fd)
            fd = -1
        with around():
            os.replace(draft, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise
    finally:
        if fd >= 0:
            os.close(fd)
    sync_folder(target.parent)


def write_at(fd: int, offset: int, data: Any) -> None:
    """Write all of `data` at `offset`; the fixed offset means that a retry after an error leaves no gap or duplicate.

    Raises OSError; part of `data` may have been written by then.
    """
    os.lseek(fd, offset, os.SEEK_SET)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def forget_cached(path: Path) -> None:
    """Drop the cached pages of a durable file, so that the disk is read next; does nothing where that is impossible."""
    if sys.platform != "win32" and hasattr(os, "posix_fadvise"):  # macOS has none
        fd = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):  # it is advice, which some file systems do not know
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def sync_folder(folder: Path) -> None:
    """fsync `folder`, so that creating, renaming and deleting files in it is durable."""
    if sys.platform == "win32":  # Windows cannot open a folder; NTFS journals names itself
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make `folder`, and the ones it is in, durably, unless they exist."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with suppress(FileExistsError):  # another process was first
            folder.mkdir()
        sync_folder(folder.parent)


def sync_tree(folder: Path) -> None:
    """fsync `folder` and what is below it, which other libraries wrote without an fsync."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            fd = os.open(path, os.O_RDONLY | _BINARY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    sync_folder(folder)


def write_file(path: Path, content: bytes) -> None:
    """Write a file, over an older one; its content is durable when this returns, but not its name. Raises OSError."""
    fd = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_at(fd, 0, content)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, text: str) -> None:
    """Replace `path` atomically: after a power cut, it has either its old content or all of `text`."""
    draft = draft_path(path)
    write_file(draft, text.encode())
    os.replace(draft, path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on the file `path`. Raises RefusedError if a running process holds it; does nothing on Windows."""
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        lock(fd, path)
        yield
    finally:
        os.close(fd)


def lock(fd: int, path: Path) -> bool:
    """Lock the open file `path`; return whether it is locked. Raises RefusedError if a running process holds the lock.

    Without the lock, a second run with the same output is not noticed.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RefusedError(f"{path} is locked by a running process: wait for it, or give another output") from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):  # some network file systems do not support locks
            raise
        return False
    return True
