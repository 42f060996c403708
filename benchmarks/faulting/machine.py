"""A simulated machine whose programs can be killed at a chosen system call, and whose disk and power can fail.

Inside `run`, calls of `os` and `flock` are counted. At the chosen call the program dies: that call and all later ones
raise Killed and do nothing, and its files and locks are closed. Or chosen calls fail, and the program handles that. The
machine records what each fsync made durable (the names in the folder and the bytes of each file), so that
`after_power_cut` can return what survives a power cut.
"""

import fcntl
import os
import shutil
import stat
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias, get_args
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

Files: TypeAlias = frozenset[tuple[str, bytes]]
Bytes: TypeAlias = npt.NDArray[np.bool_]
Names = Literal["kept", "lost", "last"]
Data = Literal["kept", "lost", "zeros"]
POWER_CUTS: list[tuple[Names, Data]] = list(product(get_args(Names), get_args(Data)))

COUNTED: dict[ModuleType, tuple[str, ...]] = {
    os: ("open", "close", "lseek", "write", "fsync", "ftruncate", "replace", "unlink", "link", "posix_fadvise"),
    fcntl: ("flock",),
}

Fails: TypeAlias = Callable[[int, str], int | None]  # the error of a call, by its index and name

_link, _lseek = os.link, os.lseek  # not counted


class Killed(BaseException):
    """Raised by every system call of a killed program; only `run` catches it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Durable:
    """What survives a power cut for certain: names with their inodes, and the bytes of inodes.

    `before_last` are the names, durable or not, before they last changed.
    """

    names: dict[str, int]
    before_last: dict[str, int]
    content: dict[int, bytes]
    dropped: dict[int, "Bytes"]  # what a failed fsync has lost, and nobody wrote again


class Machine:
    """Programs work in `folder` and the folders in it.

    `attic` keeps the files they delete, because a power cut may bring them back.
    """

    def __init__(self, folder: Path, attic: Path) -> None:
        self.folder = folder
        self._attic = attic
        self._lock = threading.RLock()
        folder.mkdir()
        attic.mkdir()
        self.start_with(frozenset())

    def start_with(self, files: Files) -> None:
        """Make `files` the only content of the folder, all of them durable."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        for name, content in files:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(content)
        self.settle()

    def settle(self) -> None:
        """Take all that is in the folder now as durable."""
        shutil.rmtree(self._attic)
        self._attic.mkdir()
        self._in_attic: set[int] = set()
        self._synced_names = self._names_before_last = self._names()
        self._synced_bytes = {inode: (self.folder / name).read_bytes() for name, inode in self._names().items()}
        self._dropped: dict[int, Bytes] = {}

    @property
    def durable(self) -> Durable:
        return Durable(
            names=self._synced_names,
            before_last=self._names_before_last,
            content=self._synced_bytes,
            dropped=self._dropped,
        )

    @durable.setter
    def durable(self, durable: Durable) -> None:
        """Continue after a program that ran in another process, with the same folder."""
        self._synced_names, self._synced_bytes, self._dropped = durable.names, durable.content, durable.dropped
        self._names_before_last = durable.before_last
        self._in_attic = {int(name) for name in os.listdir(self._attic)}

    def files(self) -> Files:
        return frozenset((name, (self.folder / name).read_bytes()) for name in self._inodes())

    def run(
        self,
        program: Callable[[], object],
        *,
        kill_at: int | None = None,
        midway: bool = False,
        die: Callable[[], object] = lambda: None,
        fails: Fails = lambda index, name: None,
        largest_write: int | None = None,
    ) -> list[str]:
        """Run `program` and return the names of its system calls, up to the one where it is killed.

        `kill_at` is the index of that call. With `midway`, half of it is done first if it is a write. `die` is
        called at that moment and need not return. Calls for which `fails` returns an error number raise that OSError;
        half of such a write is done. A write writes at most `largest_write` bytes. A program that ends by itself must
        have closed its files.
        """
        self.calls: list[str] = []
        self._open_files: set[int] = set()
        self._kill_at, self._midway, self._die, self._dead = kill_at, midway, die, False
        self._fails, self._largest_write = fails, largest_write
        try:
            with ExitStack() as patched, suppress(Killed):
                for module, names in COUNTED.items():
                    for name in names:
                        patched.enter_context(patch.object(module, name, self._counted(name, getattr(module, name))))
                program()
            assert self._dead or not self._open_files
        finally:
            for fd in self._open_files:
                os.close(fd)
        return self.calls

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return count(*args, **kwargs)

        def count(*args: Any, **kwargs: Any) -> Any:
            if self._dead:
                raise Killed
            if len(self.calls) == self._kill_at:
                if self._midway and name == "write":
                    self._done(name, original, args[0], args[1][: len(args[1]) // 2])
                self._die()
                self._dead = True
                raise Killed
            error = self._fails(len(self.calls), name)
            if name == "close" and stat.S_ISDIR(os.fstat(args[0]).st_mode):  # of a folder there is nothing to write
                error = None
            self.calls.append(name)
            if error is not None:
                self._failed(name, original, *args)
                raise OSError(error, os.strerror(error))
            if name == "write" and self._largest_write is not None:
                args = (args[0], args[1][: self._largest_write])
            return self._done(name, original, *args, **kwargs)

        return call

    def _done(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name == "fsync":  # recorded, not executed: a real fsync would only take time
            return self._sync(args[0])
        if name == "write" and (dropped := self._dropped.get(os.fstat(args[0]).st_ino)) is not None:
            begin = _lseek(args[0], 0, os.SEEK_CUR)
            dropped[begin : begin + len(args[1])] = False
        before = self._names() if name in ("open", "replace", "unlink", "link") else {}
        result = original(*args, **kwargs)
        if before and before != self._names():
            self._names_before_last = before
        if name == "open":
            self._open_files.add(result)
        elif name == "close":
            self._open_files.discard(args[0])
        return result

    def _failed(self, name: str, original: Callable[..., Any], *args: Any) -> None:
        """Do what a call that fails may do nevertheless."""
        if name == "write":
            self._done(name, original, args[0], args[1][: len(args[1]) // 2])
        elif name == "close":
            self._done(name, original, *args)
        elif name == "fsync":  # Linux drops what it could not write: a later fsync succeeds without writing it
            inode = os.fstat(args[0]).st_ino
            if (self._attic / str(inode)).exists():
                now, then = self._current(inode), self._synced_bytes.get(inode, b"")
                old = np.frombuffer(then[: len(now)].ljust(len(now), b"\0"), np.uint8)
                self._dropped[inode] = np.frombuffer(now, np.uint8) != old

    def _inodes(self) -> dict[str, int]:
        paths = (Path(parent, name) for parent, _, names in os.walk(self.folder) for name in names)
        return {path.relative_to(self.folder).as_posix(): path.stat().st_ino for path in paths}

    def _names(self) -> dict[str, int]:
        """Return the files' names and inodes; give each inode a second name in the attic, so that it survives."""
        names = self._inodes()
        for name, inode in names.items():
            if inode not in self._in_attic:
                _link(self.folder / name, self._attic / str(inode))
                self._in_attic.add(inode)
        return names

    def _sync(self, fd: int) -> None:
        inode, now = os.fstat(fd).st_ino, self._names()
        folders = {os.stat(parent).st_ino: os.path.relpath(parent, self.folder) for parent, *_ in os.walk(self.folder)}
        if inode in folders:  # only its own names become durable
            synced = {
                name for name in {**now, **self._synced_names} if (os.path.dirname(name) or ".") == folders[inode]
            }
            kept = {name: old for name, old in self._synced_names.items() if name not in synced}
            self._synced_names = kept | {name: new for name, new in now.items() if name in synced}
            self._names_before_last = now
        else:
            self._synced_bytes[inode] = self._written(inode)

    def _current(self, inode: int) -> bytes:
        return (self._attic / str(inode)).read_bytes()

    def _written(self, inode: int) -> bytes:
        """Return the bytes of a file, with those that a failed fsync dropped and nobody wrote again as they were."""
        now, dropped = self._current(inode), self._dropped.get(inode)
        if dropped is None:
            return now
        old = self._synced_bytes.get(inode, b"")[: len(now)].ljust(len(now), b"\0")
        gone = np.zeros(len(now), dtype=np.bool_)
        gone[: len(dropped)] = dropped[: len(now)]
        return np.where(gone, np.frombuffer(old, np.uint8), np.frombuffer(now, np.uint8)).tobytes()

    def after_power_cut(self, names: Names, data: Data) -> Files:
        """Return what a power cut may leave in the folder: names and bytes that were not synced are kept or lost.

        With `names` "last", only the last change of names is kept, whatever unsynced changes preceded it. With `data`
        "zeros", each file keeps its length, but bytes that were not synced are zeros.
        """
        chosen = self._names()
        if names == "lost":
            chosen = self._synced_names
        elif names == "last":
            before, now = self._names_before_last, chosen
            stayed = {name: inode for name, inode in self._synced_names.items() if name in now or name not in before}
            chosen = stayed | {name: inode for name, inode in now.items() if before.get(name) != inode}
        return frozenset((name, self._bytes_after_cut(inode, data)) for name, inode in chosen.items())

    def _bytes_after_cut(self, inode: int, data: Data) -> bytes:
        current = self._written(inode)
        durable = self._synced_bytes.get(inode, b"")
        if data == "kept":
            return current
        if data == "lost":
            return durable
        length = min(len(current), len(durable))
        now, then = (np.frombuffer(content[:length], np.uint8) for content in (current, durable))
        same = int(np.argmax(np.append(now != then, True)))
        return current[:same].ljust(len(current), b"\0")
