"""A process that embeds shards, for `processes`: it reads commands from stdin and writes messages to stdout.

Both are pickles, of the process that started this one. When stdin ends, which the death of that process also causes,
the work is committed and the process ends.
"""

import logging
import os
import pickle
import queue
import signal
import sys
import threading
from typing import Any, BinaryIO

from fastvec.errors import FastvecError, InterruptedRunError
from fastvec.jobs.sharded import ShardedJob
from fastvec.jobs.worker import LoadEncoder, ShardWorker
from fastvec.report import Progress


class _Commands:
    """Commands from stdin, read by a thread. `ended` is set when there will be no more."""

    def __init__(self, stdin: BinaryIO) -> None:
        self.ended = threading.Event()
        self._stdin = stdin
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while True:
                self._queue.put(pickle.load(self._stdin))
        except (EOFError, OSError, pickle.UnpicklingError):
            self.ended.set()
            self._queue.put(None)

    def get(self) -> Any:
        """Return the next command, or None at the end."""
        return self._queue.get()

    def stop_signal(self) -> int | None:
        return signal.SIGINT if self.ended.is_set() else None


def main() -> None:
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print
    commands = _Commands(sys.stdin.buffer)

    def send(kind: str, value: Any = None) -> None:
        pickle.dump((kind, value), messages)
        messages.flush()

    try:
        job, load, level = commands.get()
        log = logging.getLogger("fastvec")
        log.setLevel(level)
        log.addHandler(logging.StreamHandler())
        _work(job, load, commands, send)
    except InterruptedRunError:
        pass
    except FastvecError as error:
        send("failed", error)


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
    sys.stderr.flush()
    os._exit(0)  # tearing down torch takes up to 0.4 s
