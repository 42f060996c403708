"""What is changed inside the process of a run: failing system calls and reads, clocks, memory, rights, the model."""

import builtins
import ctypes
import errno
import io
import itertools
import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.faulting.command import Program
from benchmarks.faulting.machine import COUNTED
from fastvec.encoding.chunk_encoder import ChunkEncoder

CODES = {errno.ENOSPC: "ENOSPC", errno.EDQUOT: "EDQUOT", errno.EIO: "EIO", errno.EACCES: "EACCES"}
EXITS = {errno.ENOSPC: {5}, errno.EDQUOT: {5}, errno.EIO: {1}, errno.EACCES: {1}}
_NOT_FAILING = ("close", "flock", "lseek")
_CAPABILITIES = 0x20080522  # version 3 of capget and capset
_OVERRIDING = 0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER


def fail_calls(at: int, code: int, times: int, program: Program) -> None:
    """Let the system calls that change files fail, from number `at` on."""
    count = itertools.count()

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def fail(*args: Any, **options: Any) -> Any:
            if at <= next(count) < at + times:
                raise OSError(code, os.strerror(code))
            return call(*args, **options)

        return fail

    for module, names in COUNTED.items():
        for name in names:
            if name not in _NOT_FAILING:
                setattr(module, name, failing(getattr(module, name)))
    program()


def fail_reads(folders: Sequence[Path], at: int, program: Program) -> None:
    """Let a read of a file in `folders` fail: the one of number `at`, and all after it."""
    count, original = itertools.count(), io.open
    inside = tuple(map(str, folders))

    class Failing(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            self._fail()
            return super().readinto(buffer)

        def readall(self) -> bytes:
            self._fail()
            return super().readall()

        def _fail(self) -> None:
            if next(count) >= at:
                raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)

    def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        if not str(file).startswith(inside) or set(mode) - set("rbt"):
            return original(file, mode, buffering, *args, **options)
        raw = Failing(file, "r")
        if buffering == 0:
            return raw
        return io.BufferedReader(raw) if "b" in mode else io.TextIOWrapper(io.BufferedReader(raw), *args, **options)

    io.open = opened
    builtins.open = opened
    program()


def jump_clocks(at: int, seconds: float, program: Program) -> None:
    """Let all clocks jump, at call number `at` of one."""
    count = itertools.count()

    def jumping(clock: Callable[[], float]) -> Callable[[], float]:
        return lambda: clock() + (seconds if next(count) >= at else 0)

    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, jumping(getattr(time, name)))
    program()


def limit_memory(room: int, program: Program) -> None:
    """Let the address space grow by so many bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + room
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    program()


def obey_modes(program: Program) -> None:
    """Take from root the right to write where the modes forbid it."""
    if os.geteuid() == 0:
        libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
        libc.capget(header, sets)
        for number in range(3):
            sets[number] &= ~_OVERRIDING
        libc.capset(header, sets)
    program()


def spoil_vectors(at: int, program: Program) -> None:
    """Let a forward pass give a NaN, and each after it."""
    count, original = itertools.count(), ChunkEncoder._vectors

    def spoiled(self: ChunkEncoder, *args: Any) -> torch.Tensor:
        vectors = original(self, *args)
        if next(count) >= at:
            vectors[0, 0] = torch.nan
        return vectors

    setattr(ChunkEncoder, original.__name__, spoiled)
    program()
