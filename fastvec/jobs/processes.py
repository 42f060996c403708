"""Embeds shards in several processes of this machine, each with its own device and its own copy of the model.

A process is given the next shard when it has finished one. If a process dies, another one takes its place, and its
shard is done again, from the last durable chunk on.
"""

import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastvec.errors import InterruptedRunError, WorkerError
from fastvec.jobs.progress import JobProgress
from fastvec.jobs.sharded import Schedule, ShardedJob
from fastvec.jobs.worker import LoadEncoder, load_encoder
from fastvec.shards.receipts import Receipt, part_name

logger = logging.getLogger(__name__)

TRIES = 3  # how many processes may die at the same shard, or before they were given one
POLL_SECONDS = 0.2  # how often a wait looks for a signal
END_SECONDS = 60.0  # what a process may take to commit its chunks and end, before it is killed


def in_processes(environments: Sequence[Mapping[str, str]], load: LoadEncoder = load_encoder) -> Schedule:
    """Return a schedule that embeds shards in a process for each of `environments`, its additional variables."""

    def run(
        job: ShardedJob, shards: Sequence[int], progress: JobProgress, stop_signal: Callable[[], int | None]
    ) -> Iterator[Receipt]:
        pool = _Pool(job, shards, progress, load)
        try:
            yield from pool.run(environments[: len(shards)], stop_signal)
        finally:
            pool.end()

    return run


class _Worker:
    """A process, and a thread that passes its messages on as (worker, message); the last one is None: it has ended."""

    def __init__(self, environment: Mapping[str, str], messages: "queue.SimpleQueue[Any]") -> None:
        self.environment = environment
        self.shard: int | None = None
        self.told_to_end = False
        paths = os.pathsep.join(map(os.path.abspath, sys.path))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fastvec.jobs.worker_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment, "PYTHONPATH": paths},
            start_new_session=True,  # a terminal sends Ctrl-C to this process alone, which then stops the others
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("a process was started without pipes")
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        self._messages = messages
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            with self._stdout:
                while True:
                    self._messages.put((self, pickle.load(self._stdout)))
        except (EOFError, OSError, pickle.UnpicklingError):
            pass  # cut off when the process dies
        except Exception as error:  # unpickling can raise anything; the caller's thread raises it
            self._messages.put((self, ("failed", error)))
        finally:
            self._messages.put((self, None))

    def send(self, *message: Any) -> None:
        if self._stdin.closed:  # the job was stopped while the process loaded its model
            return
        with suppress(OSError):  # it has ended, of which its last message tells
            self._stdin.write(pickle.dumps(message))
            self._stdin.flush()

    def close(self) -> None:
        """Let the process commit its work and end."""
        self.told_to_end = True
        with suppress(OSError):
            self._stdin.close()

    def end(self, deadline: float) -> str:
        """Wait for the end of the process, kill it at `deadline` (`time.monotonic`), and return how it ended."""
        self.close()
        try:
            code = self.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            logger.warning("a worker process did not end within %g seconds and is killed", END_SECONDS)
            self.process.kill()
            code = self.process.wait()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class _Pool:
    def __init__(self, job: ShardedJob, shards: Sequence[int], progress: JobProgress, load: LoadEncoder) -> None:
        self._job, self._progress, self._load = job, progress, load
        self._waiting = deque(shards)
        self._workers: set[_Worker] = set()
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._loaded: deque[_Worker] = deque()  # processes that wait until the first of them has begun the job
        self._beginner: _Worker | None = None
        self._begun = False
        self._deaths: Counter[int | None] = Counter()  # by shard; None: before a shard was given
        self._stop_deadline: float | None = None

    def run(
        self, environments: Sequence[Mapping[str, str]], stop_signal: Callable[[], int | None]
    ) -> Iterator[Receipt]:
        """Embed all shards, and yield their receipts. Raises FastvecError."""
        for environment in environments:
            self._start(environment)
        stopped: int | None = None
        while self._workers:
            if stopped is None and (stopped := stop_signal()) is not None:
                self._waiting.clear()
                for worker in self._workers:
                    worker.close()
                self._stop_deadline = time.monotonic() + END_SECONDS
            if self._stop_deadline is not None and time.monotonic() > self._stop_deadline:
                break  # `end` kills the processes that are left
            try:
                worker, message = self._messages.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if message is None:
                self._replace(worker)
            elif (receipt := self._handle(worker, *message)) is not None:
                yield receipt
        if stopped is not None:
            raise InterruptedRunError("", stopped)

    def _start(self, environment: Mapping[str, str]) -> None:
        worker = _Worker(environment, self._messages)
        level = logging.getLogger("fastvec").getEffectiveLevel()
        # what a model's loading logs is the same in all processes
        level = max(level, logging.WARNING) if self._workers else level
        # long after this process would have killed it: for when this process is dead
        worker.send(self._job, self._load, level, END_SECONDS + 60)
        self._workers.add(worker)

    def _handle(self, worker: _Worker, kind: str, value: Any) -> Receipt | None:
        """Act on a message; returns the receipt of a finished shard. Raises the error of a worker."""
        if kind == "failed":
            raise value
        if kind == "progress":
            self._progress.update(*value)
            return None
        if kind == "loaded":
            self._loaded.append(worker)
        elif kind == "begun":
            self._begun = True
            self._deaths.pop(None, None)
            self._give(worker)
        while self._loaded and (self._begun or self._beginner is None):
            self._beginner = self._loaded.popleft()
            self._beginner.send("begin")
        if kind != "finished":
            return None
        self._deaths.pop(worker.shard, None)
        self._give(worker)
        receipt: Receipt = value
        return receipt

    def _give(self, worker: _Worker) -> None:
        worker.shard = self._waiting.popleft() if self._waiting else None
        if worker.shard is None:
            worker.close()
        else:
            worker.send("embed", worker.shard)

    def _replace(self, worker: _Worker) -> None:
        """Forget a process that has ended; if it died at its work, start another one. Raises WorkerError."""
        self._workers.remove(worker)
        if worker in self._loaded:
            self._loaded.remove(worker)
        shard = worker.shard
        idle = shard is None and (worker.told_to_end or (self._begun and not self._waiting))
        how = worker.end(self._deadline())
        if self._stop_deadline is not None or idle:
            return
        if worker is self._beginner and not self._begun:
            self._beginner = None
        self._deaths[shard] += 1
        at = "before it had a shard" if shard is None else f"at {part_name(shard, shard + 1)}"
        if self._deaths[shard] >= TRIES:
            raise WorkerError(
                f"a worker process {how} {at}, {TRIES} times: finished shards are safe, and the same command "
                "resumes; a process that is killed may have run out of memory, for which there is --batch-tokens"
            )
        logger.warning("a worker process %s %s; another one takes its place", how, at)
        if shard is not None:
            self._progress.restart(shard)
            self._waiting.appendleft(shard)
        self._start(worker.environment)

    def _deadline(self) -> float:
        """Return when processes are killed that are told to end now."""
        return time.monotonic() + END_SECONDS if self._stop_deadline is None else self._stop_deadline

    def end(self) -> None:
        """End all processes, after they have committed their work."""
        for worker in self._workers:  # so that they end at the same time
            worker.close()
        deadline = self._deadline()
        for worker in self._workers:
            worker.end(deadline)
