"""Embeds a planned job into a folder of shards: finds what is missing, has it embedded, and publishes the manifest.

    vecs/_job.json            what all shards share; made by the first worker
    vecs/_work/ID/            shards that are being written, each with its journal; ID is in _job.json
    vecs/part-00000.arrow     a finished shard, renamed or uploaded as a whole
    vecs/_receipts/ID/0.json  says so
    vecs/_manifest.json       lists all shards; written by whoever finds that all have a receipt
    vecs/_errors.jsonl        the row errors of all shards, if there are any

Nobody coordinates the processes of a job array: each publishes its last receipt before it counts all of them, so the
one that publishes last finds all.
"""

import logging
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastvec.embedding.measurements import Measurements
from fastvec.embedding.plan import EmbedPlan
from fastvec.embedding.run import report_of
from fastvec.errors import DiskFullError, InterruptedRunError, OutputError, RefusedError, RowErrorsError
from fastvec.fingerprint import fingerprint_differences
from fastvec.jobs.progress import JobProgress
from fastvec.jobs.record import require_same_job
from fastvec.jobs.worker import ShardWorker
from fastvec.report import Progress, Report, peak_memory_bytes
from fastvec.shards.folder import Folder, LocalFolder
from fastvec.shards.manifest import (
    ERRORS,
    MANIFEST,
    LostErrorsError,
    Manifest,
    read_errors,
    read_manifest,
    write_manifest,
)
from fastvec.shards.receipts import (
    RECEIPTS,
    Receipt,
    Receipts,
    finished_shards,
    is_part,
    part_name,
    receipt_name,
)
from fastvec.shards.record import RECORD, Record, read_record
from fastvec.system.durable_files import locked, sync_folder, translated_os_errors

if TYPE_CHECKING:
    from fastvec.encoder import Encoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardedJob:
    """A planned job with the folder it writes, and how it is divided."""

    plan: EmbedPlan
    folder: Folder
    shard_rows: int
    batch_tokens: int | None


# Embeds the shards of these numbers, in any order, and yields their receipts.
Schedule = Callable[[ShardedJob, Sequence[int], JobProgress, Callable[[], int | None]], Iterator[Receipt]]


def in_this_process(encoder: "Encoder | None", measurements: Measurements | None = None) -> Schedule:
    """Return a schedule that embeds one shard after another; without an `encoder`, it is loaded when it is needed.

    `measurements` are added to.
    """

    def run(
        job: ShardedJob, shards: Sequence[int], progress: JobProgress, stop_signal: Callable[[], int | None]
    ) -> Iterator[Receipt]:
        worker = ShardWorker(
            job.plan,
            job.folder,
            shard_rows=job.shard_rows,
            batch_tokens=job.batch_tokens,
            encoder=encoder,
            measurements=measurements,
        )
        for shard in shards:

            def show(state: Progress, shard: int = shard) -> None:
                progress.update(shard, state)

            yield worker(shard, progress=show, stop_signal=stop_signal)

    return run


def embed_shards(
    plan: EmbedPlan,
    folder: Folder,
    schedule: Schedule,
    *,
    part: tuple[int, int] | None,
    shard_rows: int | None,
    batch_tokens: int | None,
    overwrite: bool,
    progress: Callable[[Progress], None],
    stop_signal: Callable[[], int | None],
) -> Report:
    """Do what is left to do of a job whose output is a folder.

    `part` (i, N) is this process's part of the shards: those whose number is i modulo N. Raises FastvecError.
    """
    plan, manifest, record = _begun(plan, folder, shard_rows, overwrite=overwrite)
    if manifest is not None:
        _finish_killed(folder)
        counts = dict(manifest.counts)
        return report_of(plan, rows=manifest.rows, shards=len(manifest.shards), **counts, already_finished=True)
    size = shard_rows or plan.shard_rows if record is None else record.shard_rows
    job = ShardedJob(plan=plan, folder=folder, shard_rows=size, batch_tokens=batch_tokens)
    ranges = plan.corpus.shards(job.shard_rows)
    index, parts = part or (0, 1)
    mine = range(index, len(ranges), parts)
    receipts = _earlier(job, record, mine, len(ranges))
    missing = [shard for shard in mine if not receipts.has[shard]]
    missing_rows = [len(ranges[shard]) for shard in missing]
    _require_space(job, record, missing_rows)
    _check_errors(job, receipts)
    if missing:
        plan.corpus.log_text_column()
    rows = sum(len(ranges[shard]) for shard in mine)
    state = JobProgress(rows, rows - sum(missing_rows), progress)
    try:
        for receipt in schedule(job, missing, state, stop_signal) if missing else ():
            receipts.add(receipt)
            state.finish(receipt)
            _check_errors(job, receipts)
    except InterruptedRunError as stopped:
        name, done = signal.Signals(stopped.exit_code - 128).name, int(receipts.has.sum())
        raise InterruptedRunError(
            f"stopped by {name}: {done:,} of {len(mine):,} shards are finished; run the same command again to resume",
            stopped.exit_code - 128,
        ) from None
    return _finished(job, ranges, receipts, state.state, only=None if part is None else len(mine))


def _finish_killed(folder: Folder) -> None:
    """Do what a run did not do that was killed after it wrote the manifest, whose name may not be durable."""
    if folder.work.exists():
        if isinstance(folder, LocalFolder):
            with translated_os_errors(folder.path):
                sync_folder(folder.path)
        shutil.rmtree(folder.work, ignore_errors=True)


def _begun(
    plan: EmbedPlan, folder: Folder, shard_rows: int | None, *, overwrite: bool
) -> tuple[EmbedPlan, Manifest | None, Record | None]:
    """Return the plan in the dtype of earlier work, the manifest of a finished job, and the record of a begun one.

    A finished job of which a file is missing is one that is begun.
    Raises RefusedError if the folder has another job, or other files than a job's.
    """
    manifest, record = read_manifest(folder), read_record(folder)
    if manifest is None and record is None:
        _require_own(folder)
        return plan, None, None
    fingerprint = manifest.fingerprint if manifest is not None else record.fingerprint if record is not None else {}
    if plan.settings.auto_dtype:
        plan = plan.as_begun(fingerprint)
    if overwrite and (manifest is not None or fingerprint_differences(fingerprint, plan.fingerprint)):
        _clear(folder, record)
        return plan, None, None
    require_same_job(folder, fingerprint, plan)
    if record is not None and shard_rows not in (None, record.shard_rows):
        raise RefusedError(
            f"{folder.location} was begun with {record.shard_rows:,} rows a shard, and --shard-rows is {shard_rows:,}: "
            "leave it out, or choose another -o"
        )
    if manifest is not None:
        sizes = folder.names()
        lost = next((shard.file for shard in manifest.shards if sizes.get(shard.file) != shard.bytes), None)
        if lost is None and not _has_errors(folder, manifest):
            lost = ERRORS
        if lost is not None and record is None:
            raise OutputError(
                f"{folder.location}/{lost} is missing or was cut, and so is {RECORD}, without which it cannot be made "
                "again: repeat the command with --overwrite"
            )
        if lost is not None:
            if lost == ERRORS:  # which is created only where there is none
                folder.remove(ERRORS)
            folder.remove(MANIFEST)
            manifest = None
    return plan, manifest, record


def _has_errors(folder: Folder, manifest: Manifest) -> bool:
    """Return whether the file of row errors is the one that the manifest lists. Raises OutputError."""
    try:
        read_errors(folder, manifest)
    except LostErrorsError:
        return False
    return True


def _earlier(job: ShardedJob, record: Record | None, mine: Sequence[int], shards: int) -> Receipts:
    """Return the receipts of those of the shards `mine` that earlier runs finished, and whose files are there."""
    if record is None:
        return Receipts(job.folder, "", shards)
    receipts, finished = Receipts(job.folder, record.id, shards), finished_shards(job.folder, record.id)
    receipts.read(shard for shard in mine if shard in finished)
    lost = receipts.without_file(job.folder.names())
    for shard in lost:
        name = part_name(shard, shards)
        logger.warning("%s/%s is missing or was cut: it is embedded again", job.folder.location, name)
        job.folder.remove(receipt_name(record.id, shard))
    return _earlier(job, record, mine, shards) if lost else receipts


def _require_own(folder: Folder) -> None:
    """Raise RefusedError if a folder without a job has files."""
    foreign = sorted(folder.names())
    if foreign:
        raise RefusedError(
            f"{folder.location} has other files, such as {foreign[0]}: an output in shards needs a folder of its own, "
            f"such as {folder.location.rstrip('/')}/vecs/"
        )


def _clear(folder: Folder, record: Record | None) -> None:
    """Delete the files of a job: the manifest first, a receipt before its shard, and last what says whose they are.

    Raises RefusedError if a process of this machine, or of one that shares locks, is writing a shard.
    """
    for path in folder.work.glob("*/*.lock"):
        with translated_os_errors(path), locked(path):
            pass
    folder.remove(MANIFEST)
    for inside in (RECEIPTS, *([] if record is None else [f"{RECEIPTS}/{record.id}"])):
        for name in folder.names(inside):
            folder.remove(f"{inside}/{name}")
    for name in folder.names():
        if is_part(name):
            folder.remove(name)
    shutil.rmtree(folder.work, ignore_errors=True)
    folder.remove(ERRORS)
    folder.remove(RECORD)


def _require_space(job: ShardedJob, record: Record | None, rows: Sequence[int]) -> None:
    """Raise DiskFullError if shards of so many rows do not fit on the disk where they are written."""
    work = job.folder.work
    begun = 0 if record is None else sum(LocalFolder(work).names(record.id).values())
    # shards of a folder in a store are deleted here when they are uploaded
    most = sum(rows) if isinstance(job.folder, LocalFolder) else max(rows, default=0)
    free, needed = _free_bytes(work), most * job.plan.row_bytes - begun
    if free < needed:
        raise DiskFullError(
            f"{job.folder.location} needs at least {needed:,} bytes more and {free:,} are free: make room, or choose "
            "--dims or a smaller --vector-dtype"
        )


def _free_bytes(place: Path) -> int:
    """Return what is free on the disk of a folder, which need not exist yet, and which another process may delete."""
    while True:
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            place = place.parent


def _check_errors(job: ShardedJob, receipts: Receipts) -> None:
    """Raise RowErrorsError if more texts have no vector, in all shards together, than the options allow."""
    allowed, errors = job.plan.options.max_errors, receipts.counts["errors"]
    if allowed is not None and errors > allowed:
        raise RowErrorsError(
            f"{errors:,} texts have no vector and --max-errors {allowed} stops there: finished shards are safe; run "
            "the same command with a larger --max-errors to resume"
        )


def _finished(
    job: ShardedJob, ranges: Sequence[range], receipts: Receipts, state: Progress, *, only: int | None
) -> Report:
    """Publish the manifest if all shards have a receipt, and report on the shards of this process."""
    counts, rows, record = dict(receipts.counts), int(receipts.rows.sum()), read_record(job.folder)
    finished = set() if record is None else finished_shards(job.folder, record.id)
    if record is not None and len(finished) == len(ranges):
        receipts.job = record.id
        receipts.read(finished)
        _check_errors(job, receipts)
        for shard in receipts.without_file(job.folder.names()):
            part = f"{job.folder.location}/{part_name(shard, len(ranges))}"
            others = "" if only is None else ", and those of the other --shard"
            raise OutputError(f"{part} was lost or cut after it was finished: run the same command again{others}")
        write_manifest(job.folder, job.plan.fingerprint, ranges, receipts)
        shutil.rmtree(job.folder.work, ignore_errors=True)
        for name in job.folder.names(RECEIPTS):  # marks of runs on Ray that were killed
            job.folder.remove(f"{RECEIPTS}/{name}")
    return report_of(
        job.plan,
        rows=rows,
        shards=len(ranges) if only is None else only,
        missing_shards=len(ranges) - len(finished),
        verified=receipts.verified,
        **counts,
        resumed_rows=state.rows - state.new_rows,
        choices=None if record is None else record.choices,
        seconds=state.seconds,
        rows_per_second=state.rows_per_second,
        tokens_per_second=state.tokens_per_second,
        waits=state.waits,
        peak_memory_bytes=peak_memory_bytes(),
    )
