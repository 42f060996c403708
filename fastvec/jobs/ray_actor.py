"""What an actor of Ray does for `ray_data`: it embeds a shard and answers with its receipt. Ray is not imported here.

An actor starts at any time on any node. It may take over the shard of one that died, and meet one that lives on for
some seconds although Ray has given it up. So it first claims the shard: it locks a file in the work folder, which also
counts how often the shard was begun.
"""

import json
import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastvec import errors
from fastvec.errors import FastvecError, InputError, ModelError, OutputError, WorkerError
from fastvec.jobs.processes import TRIES
from fastvec.jobs.sharded import ShardedJob
from fastvec.jobs.worker import LoadEncoder, ShardWorker, draft_of
from fastvec.output.ownership import beside
from fastvec.report import Progress
from fastvec.shards.receipts import Receipt, part_name
from fastvec.shards.record import read_record
from fastvec.system.durable_files import make_locked, translated_os_errors, write_at

CLAIM_SECONDS = 60.0  # how long an actor waits for one that has its shard; those of a killed driver end after about 3 s

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What all actors of a run are told. `run` is unlike that of any other run."""

    job: ShardedJob
    load: LoadEncoder
    run: str
    mark: str  # a file of the output folder, which the driver made for this run
    folder: str  # the driver's present folder, in which relative paths begin
    log_level: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """A shard that was embedded: its receipt, its last progress if it was new, and what was logged meanwhile."""

    receipt: Receipt
    progress: Progress | None
    log: list[tuple[int, str]]


def answered(work: Callable[[], object]) -> bytes:
    """Pack what `work` returns, or the FastvecError that it raises, of which Ray would only pass on a traceback."""
    try:
        return pickle.dumps(("", work()))
    except FastvecError as error:
        return pickle.dumps((type(error).__name__, str(error)))


def unpacked(answer: bytes) -> Any:
    """Return, or raise, what `answered` packed."""
    kind, value = pickle.loads(answer)
    if kind:
        raise getattr(errors, kind)(value)
    return value


class ShardActor:
    """Embeds shards of a pickled Task, when it is called with their numbers."""

    def __init__(self, task: bytes) -> None:
        self._task: Task = pickle.loads(task)
        self._log = _Log()
        self._worker: ShardWorker | None = None
        self._shards = 0

    def __call__(self, shard: int) -> bytes:
        return answered(lambda: self._embedded(shard))

    def _embedded(self, shard: int) -> Embedded:
        task, seen = self._task, list[Progress]()
        if self._worker is None:
            self._worker = self._begun()
        folder = task.job.folder
        path, record = folder.work / part_name(shard, self._shards), read_record(folder)
        draft = path if record is None else draft_of(folder, record, shard, self._shards)
        with _claimed(path, beside(draft, ".journal"), task.run):
            receipt = self._worker(shard, progress=lambda state: seen.__setitem__(slice(None), [state]))
        return Embedded(receipt=receipt, progress=seen[0] if seen else None, log=self._log.taken())

    def _begun(self) -> ShardWorker:
        """Return a worker that has begun the job. Raises FastvecError, which names this node if that is the reason."""
        task, job = self._task, self._task.job
        log = logging.getLogger("fastvec")
        log.setLevel(task.log_level)
        log.addHandler(self._log)
        with suppress(OSError):  # perhaps no path is relative
            os.chdir(task.folder)
        if job.plan.settings.device == "cpu" and (threads := os.environ.get("OMP_NUM_THREADS")):
            os.environ.setdefault("RAYON_NUM_THREADS", threads)  # of the tokenizer; Ray sets only the former
        _require_visible(task)
        try:
            settings = job.plan.settings.on_this_machine()
        except ModelError as error:
            raise ModelError(f"node {socket.gethostname()}: {error}") from error
        worker = ShardWorker(
            replace(job.plan, settings=settings),
            job.folder,
            shard_rows=job.shard_rows,
            batch_tokens=job.batch_tokens,
            load_encoder=task.load,
        )
        self._shards = len(job.plan.corpus.shards(job.shard_rows))
        return worker


class _Log(logging.Handler):
    """Keeps what is logged, for the driver."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append((record.levelno, record.getMessage()))

    def taken(self) -> list[tuple[int, str]]:
        taken, self._messages = self._messages, []
        return taken


def _require_visible(task: Task) -> None:
    """Raise InputError or OutputError if this node does not see an input, or the output folder."""
    node, plan = socket.gethostname(), task.job.plan
    paths = [*plan.corpus.paths, *([] if plan.earlier is None else [plan.earlier.output.path])]
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise InputError(f"node {node} of the Ray cluster has no {missing}: put the inputs where every node sees them")
    try:
        task.job.folder.read(task.mark)
    except FileNotFoundError:
        raise OutputError(
            f"node {node} of the Ray cluster has another folder {task.job.folder.location}, or none: choose an -o that "
            "every node sees"
        ) from None


@contextmanager
def _claimed(path: Path, journal: Path, run: str) -> Iterator[None]:
    """Have the shard of this name in the work folder in this block, and no other actor.

    Raises WorkerError if that many actors of this run died at it without getting any further; RefusedError if another
    process keeps it.
    """
    with translated_os_errors(path):
        fd = make_locked(beside(path, ".claim"), CLAIM_SECONDS)
    try:
        begun = {"run": run, "journal_bytes": journal.stat().st_size if journal.exists() else 0}
        earlier = _read(fd)
        tries = earlier.pop("tries", 0) if earlier.items() >= begun.items() else 0
        if tries >= TRIES:
            raise WorkerError(
                f"the actor of Ray died at {path.name}, {TRIES} times: finished shards are safe, and the same command "
                "resumes; a process that is killed may have run out of memory, for which there is --batch-tokens"
            )
        if earlier.get("run") == run:
            logger.warning("an actor of Ray died at %s; another one takes its place", path.name)
        os.ftruncate(fd, 0)
        write_at(fd, 0, json.dumps({**begun, "tries": tries + 1}).encode())
        yield
    finally:  # not after a death, which so is counted
        with suppress(OSError):
            os.unlink(beside(path, ".claim"))
        os.close(fd)


def _read(fd: int) -> dict[str, Any]:
    """Return the earlier claim; empty if there was none, or its writer died while it wrote."""
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        claim: dict[str, Any] = json.loads(os.read(fd, 10_000))
    except ValueError:
        return {}
    return claim
