"""A process that embeds shards, for `processes`: it reads commands from stdin and writes messages to stdout.

Both are pickles, of the process that started this one. When stdin ends, which the death of that process also causes,
the work is committed and the process ends. Nothing else stops it: schedulers such as Slurm and systemd send SIGTERM to
all processes of a job, and this one must commit first.
"""

import logging
import os
import pickle
import queue
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, BinaryIO

from fastvec.errors import FastvecError, InterruptedRunError
from fastvec.jobs.sharded import ShardedJob
from fastvec.jobs.worker import LoadEncoder, ShardWorker
from fastvec.report import Progress
from fastvec.system.memory import translated_memory_errors
from fastvec.system.stop_signals import STOP_SIGNALS


class _Commands:
    """Commands from stdin, read by a thread. `ended` is set when there will be no more.

    If the process is still there `end_seconds` later, because it is stuck, the thread ends it: nobody else may do so.
    """

    def __init__(self, stdin: BinaryIO, end_seconds: float) -> None:
        self.ended = threading.Event()
        self._stdin, self._end_seconds = stdin, end_seconds
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                self._queue.put(pickle.load(self._stdin))
        self.ended.set()
        self._queue.put(None)
        time.sleep(self._end_seconds)
        os._exit(1)

    def get(self) -> Any:
        """Return the next command, or None at the end."""
        return self._queue.get()

    def stop_signal(self) -> int | None:
        return signal.SIGINT if self.ended.is_set() else None


def main() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print

    def send(kind: str, value: Any = None) -> None:
        with suppress(BrokenPipeError):  # the other process is dead; stdin ends too, which stops the work
            messages.write(pickle.dumps((kind, value)))
            messages.flush()

    try:
        job, load, level, end_seconds = pickle.load(sys.stdin.buffer)
    except (EOFError, pickle.UnpicklingError):  # the other process has ended already
        return
    try:
        commands = _Commands(sys.stdin.buffer, end_seconds)
        log = logging.getLogger("fastvec")
        log.setLevel(level)
        log.addHandler(logging.StreamHandler())
        with translated_memory_errors():
            _work(job, load, commands, send)
    except InterruptedRunError:
        pass
    except FastvecError as error:
        send("failed", error)
    sys.stderr.flush()
    os._exit(0)  # tearing down torch takes up to 0.4 s, and `messages` may have bytes for a dead process


def _work(job: ShardedJob, load: LoadEncoder, commands: _Commands, send: Any) -> None:
    worker = ShardWorker(
        job.plan, job.folder, shard_rows=job.shard_rows, batch_tokens=job.batch_tokens, load_encoder=load
    )
    worker.load()
    send("loaded")
    while (command := commands.get()) is not None:
        if command == ("begin",):
            worker.begin()
            send("begun")
            continue
        _, shard = command

        def show(progress: Progress, shard: int = shard) -> None:
            send("progress", (shard, progress))

        send("finished", worker(shard, progress=show, stop_signal=commands.stop_signal))


if __name__ == "__main__":
    main()
