"""Embeds shards of a job, one after another, with one encoder."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastvec.embedding.job import write_file
from fastvec.embedding.measurements import Measurements
from fastvec.embedding.plan import EmbedPlan
from fastvec.errors import OutputError
from fastvec.jobs.record import make_record, require_same_job
from fastvec.output.earlier import EarlierVectors
from fastvec.output.ownership import beside, errors_path
from fastvec.output.reader import read_output
from fastvec.output.verify import open_intact
from fastvec.output.writer import Job, finished_counts
from fastvec.report import Progress
from fastvec.settings import EncoderSettings
from fastvec.shards.folder import Folder
from fastvec.shards.receipts import Receipt, part_name, read_receipt, receipt_name
from fastvec.shards.record import Record, read_record
from fastvec.system.durable_files import make_locked, translated_os_errors

if TYPE_CHECKING:  # the encoder is loaded when it is needed
    from fastvec.encoder import Encoder

logger = logging.getLogger(__name__)

# How long to wait for a process that has the shard: one whose parent was killed commits its last batch, and ends.
LOCK_SECONDS = 10.0

LoadEncoder = Callable[[EncoderSettings], "Encoder"]


def load_encoder(settings: EncoderSettings) -> "Encoder":
    """Load the encoder that `settings` describe. Raises ModelError."""
    from fastvec.encoder import Encoder

    return Encoder(settings)


class ShardWorker:
    """Embeds shards of one job. Call it with the number of a shard; a shard that is finished is not embedded again.

    `shard_rows` is for a job that is not begun; one that is keeps its own. Without a loaded `encoder`, `load_encoder`
    loads it when the first shard needs it.
    """

    def __init__(
        self,
        plan: EmbedPlan,
        folder: Folder,
        *,
        shard_rows: int,
        batch_tokens: int | None = None,
        encoder: "Encoder | None" = None,
        load_encoder: LoadEncoder = load_encoder,
        measurements: Measurements | None = None,
    ) -> None:
        self._measurements = measurements
        self._plan, self._folder = plan, folder
        self._shard_rows, self._batch_tokens = shard_rows, batch_tokens
        self._encoder, self._load_encoder = encoder, load_encoder
        self._earlier: EarlierVectors | None = None
        self._record: Record | None = None
        self._shards: list[range] = []

    def load(self) -> "Encoder":
        """Load what shards are embedded with: the vectors to reuse, and the model. Raises FastvecError."""
        if self._earlier is None:
            self._earlier = self._plan.earlier_vectors()
        if self._encoder is None:
            self._encoder = self._load_encoder(self._plan.settings)
        return self._encoder

    def begin(self) -> Record:
        """Read the record of the job, or decide it if this worker is the first. Raises FastvecError."""
        if self._record is None:
            record = read_record(self._folder)
            if record is None:
                encoder = self.load()
                record = make_record(
                    self._plan,
                    encoder,
                    self._earlier,
                    self._folder,
                    shard_rows=self._shard_rows,
                    batch_tokens=self._batch_tokens,
                )
            else:
                require_same_job(self._folder, record.fingerprint, self._plan)
            self._record, self._shards = record, self._plan.corpus.shards(record.shard_rows)
        return self._record

    def __call__(
        self,
        shard: int,
        *,
        progress: Callable[[Progress], None] = lambda _: None,
        stop_signal: Callable[[], int | None] = lambda: None,
    ) -> Receipt:
        """Embed a shard, or what is missing of it, publish it, and return its receipt.

        Raises FastvecError; RefusedError if another process is writing the shard and does not end.
        """
        record = self.begin()
        receipt = receipt_name(record.id, shard)
        with suppress(FileNotFoundError):
            return read_receipt(self._folder, receipt)
        self.load()  # takes long, and another process may finish the shard meanwhile
        draft = draft_of(self._folder, record, shard, len(self._shards))
        with _locked(beside(draft, ".lock")):
            with suppress(FileNotFoundError):
                return read_receipt(self._folder, receipt)
            verified = self._write(shard, draft, progress, stop_signal)
            return self._published(shard, draft, verified=verified)

    def _write(
        self, shard: int, draft: Path, progress: Callable[[Progress], None], stop_signal: Callable[[], int | None]
    ) -> bool:
        """Write the file of a shard, unless an earlier run has finished it and not published it.

        Returns whether it was read back.
        """
        record, plan = self.begin(), replace(self._plan, output=draft, shard=self._shards[shard])
        job = Job(fingerprint=plan.fingerprint, environment={}, limits=record.limits, choices=record.choices)
        read_back = plan.options.verify is not False
        if _is_finished(draft, job, read_back=read_back):
            return read_back
        encoder = self.load()
        report = write_file(
            plan,
            encoder,
            replace(job, environment=encoder.environment),
            self._earlier,
            batch_tokens=self._batch_tokens,
            ranges=None if record.ranges is None else np.array(record.ranges, dtype=np.float32),
            progress=progress,
            stop_signal=stop_signal,
            measurements=self._measurements,
        )
        return bool(report.verified)

    def _published(self, shard: int, draft: Path, *, verified: bool) -> Receipt:
        """Publish a shard's file and its receipt. Raises OutputError if another process did so with other bytes."""
        name = receipt_name(self.begin().id, shard)
        with translated_os_errors(draft):
            own = replace(_receipt(shard, self._shards[shard], draft), verified=verified)
        with suppress(FileNotFoundError):  # of a process on another machine: stores and some file systems have no locks
            return read_receipt(self._folder, name)
        self._folder.publish(draft, part_name(shard, len(self._shards)))
        receipt = own.write(self._folder, name)
        if receipt.checksum != own.checksum:
            self._folder.remove(name)
            raise OutputError(
                f"{self._folder.location}: shard {shard} was embedded by two processes at the same time, and their "
                "bytes differ: run the same command again, which embeds it once more"
            )
        with suppress(OSError):  # the shard is published; what is left of its work is deleted with that of all
            errors_path(draft).unlink(missing_ok=True)
        return receipt


def draft_of(folder: Folder, record: Record, shard: int, shards: int) -> Path:
    """Return the path at which a shard is written."""
    return folder.work / record.id / part_name(shard, shards)


def _is_finished(draft: Path, job: Job, *, read_back: bool) -> bool:
    """Return whether an earlier run has finished the file of a shard.

    What it left and cannot be resumed, because it was damaged since, is deleted: nobody else writes in a job's work.
    """
    try:
        if finished_counts(draft, job) is None:
            return False
        if read_back:
            open_intact(draft)
        return True
    except OutputError as error:
        if getattr(error.__cause__, "errno", None) is not None:  # a lock, or a disk that may be read the next time
            raise
        logger.warning("what is left of %s is damaged: it is embedded again", draft)
    with translated_os_errors(draft):
        for path in (draft, beside(draft, ".part"), beside(draft, ".journal")):
            path.unlink(missing_ok=True)
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock on a file in this block, and delete it. Raises RefusedError if another process keeps it."""
    with translated_os_errors(path):
        fd = make_locked(path, LOCK_SECONDS)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)
        with suppress(OSError):  # it has no content that could be lost
            os.close(fd)


def _receipt(shard: int, rows: range, path: Path) -> Receipt:
    """Return the receipt of the finished file at `path`, with the row errors beside it."""
    output, errors = read_output(path), errors_path(path)
    return Receipt(
        shard=shard,
        first_row=rows.start,
        input_rows=len(rows),
        rows=output.rows,
        bytes=path.stat().st_size,
        checksum=output.promises["fastvec.checksum"],
        counts=output.counts,
        errors=errors.read_text().splitlines() if errors.exists() else [],
    )
