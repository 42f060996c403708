"""Embeds shards of a job, one after another, with one encoder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastvec.embedding.job import write_file
from fastvec.embedding.plan import EmbedPlan
from fastvec.jobs.record import Record, make_record, read_record, require_same_job
from fastvec.output.earlier import EarlierVectors
from fastvec.output.ownership import errors_path
from fastvec.output.reader import read_output
from fastvec.output.writer import Job, finished_counts
from fastvec.report import Progress
from fastvec.settings import EncoderSettings
from fastvec.shards.folder import Folder
from fastvec.shards.receipts import Receipt, part_name, read_receipt, receipt_name
from fastvec.system.durable_files import make_folder, translated_os_errors

if TYPE_CHECKING:  # the encoder is loaded when it is needed
    from fastvec.encoder import Encoder


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
    ) -> None:
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
                record = make_record(self._plan, encoder, self._earlier, self._folder, self._shard_rows)
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
        """Embed a shard, or what is missing of it, publish it, and return its receipt. Raises FastvecError."""
        try:
            return read_receipt(self._folder, receipt_name(shard))
        except FileNotFoundError:
            record = self.begin()
        rows, name = self._shards[shard], part_name(shard, len(self._shards))
        plan = replace(self._plan, output=self._folder.work / name, shard=rows)
        with translated_os_errors(plan.output):
            make_folder(plan.output.parent)
        job = Job(fingerprint=plan.fingerprint, environment={}, limits=record.limits, choices=record.choices)
        if finished_counts(plan.output, job) is None:  # else a run ended before it published the shard
            encoder = self.load()
            write_file(
                plan,
                encoder,
                replace(job, environment=encoder.environment),
                self._earlier,
                batch_tokens=self._batch_tokens,
                ranges=None if record.ranges is None else np.array(record.ranges, dtype=np.float32),
                progress=progress,
                stop_signal=stop_signal,
            )
        receipt = _receipt(shard, rows, plan.output)
        self._folder.publish(plan.output, name)
        receipt = receipt.write(self._folder, receipt_name(shard))
        errors_path(plan.output).unlink(missing_ok=True)
        return receipt


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
