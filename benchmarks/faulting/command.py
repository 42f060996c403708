"""Runs the real command in a process forked from this one, which has imported everything: a run takes 0.1 s, not 5.

Chunks are small, so that a run makes many commits, and no job is long enough for a CPU to be measured, which may come
out otherwise in the next run. Processes of `--devices` are forked too, from the one that starts them, and are like it.
"""

import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, ClassVar, NoReturn

import fastvec.embedding.remote_output
import fastvec.encoder
import fastvec.output.inspect
import fastvec.output.verify
import fastvec.shards.verify  # noqa: F401
from fastvec.cli.entry import main
from fastvec.encoding import chunk_encoder
from fastvec.jobs import processes, worker_process
from fastvec.output import writer
from fastvec.texts import batching

Program = Callable[[], object]
Within = Callable[[Program], object]

CHUNK_TOKENS = 256
STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
END_SECONDS = 60.0  # a run takes below one second
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_others: set[int] = set()  # children of this process that are no runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a run ended. `code` is its exit code, or minus the number of the signal that killed it."""

    arguments: tuple[str, ...]
    code: int
    printed: str
    seconds: float


def plainly(program: Program) -> object:
    return program()


class Running:
    """A run of the command. `within` is called in its process with the program to run, and may disturb it.

    `chunk_tokens` is the size of its chunks; None leaves it to the command.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        within: Within = plainly,
        *,
        commit_seconds: float = 0,
        chunk_tokens: int | None = CHUNK_TOKENS,
    ) -> None:
        self.arguments, self.log = tuple(arguments), log
        self._begin = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        # a signal that came before the program is Python's to handle
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        self.pid = _fork(lambda: _run(self.arguments, log, within, commit_seconds, chunk_tokens))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

    def kill(self, number: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def workers(self) -> list[int]:
        return children(self.pid)

    def poll(self) -> Ended | None:
        """Return how the run ended; None if it has not."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return self._ended(status) if pid else None

    def wait(self) -> Ended:
        """Wait for the end. Raises TimeoutError if there is none, with where each thread is."""
        deadline = time.monotonic() + END_SECONDS
        while (ended := self.poll()) is None:
            if time.monotonic() > deadline:
                processes = [self.pid, *self.workers()]
                for number in (signal.SIGUSR2, signal.SIGKILL):
                    for pid in processes:
                        with suppress(ProcessLookupError):
                            os.kill(pid, number)
                    time.sleep(1)
                os.waitpid(self.pid, 0)
                what = f"fastvec {' '.join(self.arguments)} did not end in {END_SECONDS:.0f} s"
                raise TimeoutError(f"{what}:\n{self.log.read_text()}")
            time.sleep(0.002)
        return ended

    def _ended(self, status: int) -> Ended:
        printed = self.log.read_text(errors="replace") if self.log.exists() else ""
        return Ended(
            arguments=self.arguments,
            code=os.waitstatus_to_exitcode(status),
            printed=printed,
            seconds=time.monotonic() - self._begin,
        )


def children(pid: int | str = "self") -> list[int]:
    """Return the processes that a process has started and that have not been waited for."""
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """In this block, become the parent of processes whose parent dies, so that `end_orphans` can wait for them."""
    _others.update(children())
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        end_orphans(kill=True)
        ctypes.CDLL(None).prctl(_SUBREAPER, 0, 0, 0, 0)


def end_orphans(*, kill: bool = False) -> None:
    """Wait for the processes of runs that were killed, or kill them too."""
    for pid in set(children()) - _others:
        if kill:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _fork(program: Callable[[], NoReturn]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about threads, none of which has a lock
        pid = os.fork()
    return pid or program()


def _run(
    arguments: Sequence[str], log: Path, within: Within, commit_seconds: float, chunk_tokens: int | None
) -> NoReturn:
    """Be the command in this process."""
    os.umask(0)
    warnings.resetwarnings()
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    _connect(os.open(os.devnull, os.O_RDWR), printed, printed)
    faulthandler.register(signal.SIGUSR2)  # prints where a run is that does not end
    sys.argv = ["fastvec", *arguments]
    if chunk_tokens is not None:
        batching.CHUNK_TOKENS["cpu"] = (chunk_tokens, chunk_tokens)
    vars(chunk_encoder)["is_long_job"] = lambda *_: False
    vars(processes)["subprocess"] = _FORKING
    writer.GROUP_SECONDS = commit_seconds
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    def program() -> None:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        except KeyboardInterrupt:  # before the command began
            sys.exit(128 + signal.SIGINT)
        try:
            main()
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)

    _end_with(lambda: within(program))


def _end_with(program: Program) -> NoReturn:
    """End this process as Python would after the program."""
    code = 1
    try:
        program()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _connect(stdin: int, stdout: int, stderr: int | None) -> None:
    for target, fd in enumerate((stdin, stdout, stderr)):
        if fd is not None:
            os.dup2(fd, target)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    if stderr is not None:
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


class _ForkedWorker:
    """What `processes` uses of `subprocess.Popen`, for a process that is forked instead of started."""

    _ours: ClassVar[list[BinaryIO]] = []  # the ends of pipes that belong to this process alone

    def __init__(self, *_: object, **__: object) -> None:
        stdin, own_stdin = os.pipe()
        own_stdout, stdout = os.pipe()
        self.stdin, self.stdout = os.fdopen(own_stdin, "wb"), os.fdopen(own_stdout, "rb")
        self._ours.extend([self.stdin, self.stdout])
        self.pid = _fork(lambda: _end_with(lambda: self._work(stdin, stdout)))
        os.close(stdin)
        os.close(stdout)
        self._code: int | None = None

    def _work(self, stdin: int, stdout: int) -> None:
        os.setsid()
        for file in self._ours:
            if not file.closed:
                os.close(file.fileno())
        _connect(stdin, stdout, None)
        os.close(stdin)
        os.close(stdout)
        worker_process.main()

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._code is None:
            pid, status = os.waitpid(self.pid, 0 if deadline is None else os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("fastvec", timeout or 0)
            else:
                time.sleep(0.002)
        return self._code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


_FORKING = SimpleNamespace(Popen=_ForkedWorker, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
