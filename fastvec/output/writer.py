"""Writes the output of an embedding job: one file, in row order, always either complete or resumable.

While a job runs, `vecs.arrow.part` contains the file's bytes and `vecs.arrow.journal` says how many of them are valid:

    commit    fsync the data, append one line per chunk to the journal, fsync it: a listed chunk is durable
    resume    continue after the last listed chunk: the bytes are the same as without the interruption
    finish    append the footer, fsync, rename to `vecs.arrow`, fsync the folder, delete the journal

The rename is atomic, so the final name exists only for a complete file. Writing to it with
`with pyarrow.ipc.new_file(...)` was rejected: on an exception that writes a valid footer, and the truncated file looks
complete.

For `vecs.parquet`, `vecs.parquet.part` is the same Arrow file. Once complete, it is converted to `vecs.parquet.tmp`,
which is renamed, and then deleted. A run that was killed in between converts again, to the same bytes.
"""

import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from fastvec.errors import OutputError, RefusedError
from fastvec.fingerprint import Json, differences, fingerprint_differences
from fastvec.output import arrow_file, ownership, parquet_file
from fastvec.output.journal import Chunk, Job, Journal, RowError
from fastvec.output.ownership import beside, earlier_fingerprint, finished_counts
from fastvec.output.reader import read_output
from fastvec.system.blocks import NOT_WRITTEN, Block, DamagedBlockError, described, first_damaged, read_back
from fastvec.system.durable_files import (
    draft_path,
    open_file,
    replacing,
    sync_folder,
    translated_os_errors,
    write_at,
)

__all__ = ["Job", "Json", "RowError", "Writer", "earlier_fingerprint", "finished_counts"]

# a commit takes two fsyncs: 0.2 ms on an SSD, about 50 ms on a hard disk; negligible at one commit every 2 s
GROUP_BYTES = 256 << 20
GROUP_SECONDS = 2.0


class Writer:
    """Writes the chunks of a job in order, each as one record batch. Not thread-safe. Create it with `Writer.open`.

    Attributes:
        limits: The chunk limits in force; a resumed run takes them from the journal.
        choices: What a CPU computes by; a resumed run takes it from the journal, a fresh one sets it before `begin`.
        rows, chunks: Durable rows and chunks; a resumed run continues after these.
        counts: Sums over all chunks written.
        errors: The row errors of all chunks written, in order.
        batch_tokens: The token budget of the last chunk written.
        schema: The output's schema; None in a fresh run before `begin`.
        warnings: One-line warnings for the user.
        verified: Whether `finish` read the output back from the disk and found what was written.
    """

    def __init__(self, output: Path, job: Job, journal: Journal) -> None:
        """Use `Writer.open` instead."""
        self.limits, self.choices = job.limits, job.choices
        self.rows = 0
        self.chunks = 0
        self.counts: Counter[str] = Counter()
        self.errors: list[RowError] = []
        self.batch_tokens: int | None = None
        self.schema: pa.Schema | None = None
        self.warnings: list[str] = []
        self.verified = False
        self._output = output
        self._part_path = beside(output, ".part")
        self._part: int | None = None  # file descriptor; None before `begin` and after a failure
        self._job = job
        self._journal = journal
        self._end = 0  # byte offset of the next chunk
        self._crc32 = 0  # start value for the next chunk's: the head's CRC32 before the first chunk, then 0
        self._pending: list[Chunk] = []  # written, not yet durable
        self._pending_bytes = 0
        self._pending_since = 0.0
        self._opened = time.monotonic()

    @classmethod
    def open(cls, output: Path, job: Job, *, overwrite: bool = False) -> "Writer":
        """Lock `output`, to write it from the start or to resume this job's unfinished work.

        `overwrite` replaces another job's files or a finished output, which stays readable until the new one replaces
        it. It never discards unfinished work of the same job.
        Raises what `finished_counts` raises, RefusedError if another run has finished the output since that call, and
        OutputError if unfinished work is damaged.
        """
        with translated_os_errors(output):
            ownership.require_writable(output)
            writer = cls(output, job, Journal.open(beside(output, ".journal"), create=True))
            try:
                writer._prepare(overwrite=overwrite)
            except BaseException:
                writer.close()
                raise
        return writer

    def _prepare(self, *, overwrite: bool) -> None:
        journal = self._journal
        if ownership.finished(self._output, self._job, journal, overwrite=overwrite) is not None:
            raise RefusedError(f"{self._output} was just finished by another run of the same command")
        begun = journal.unfinished
        if begun is None or fingerprint_differences(begun.fingerprint, self._job.fingerprint):
            return
        if overwrite and not self._part_path.exists():  # killed after the rename: only the journal is left
            return
        self.limits, self.choices = begun.limits, begun.choices
        for difference in differences(begun.environment, dict(self._job.environment), ""):
            self.warnings.append(f"{difference}: new vectors may differ from the earlier ones in the last digits")
        self._resume()

    def _resume(self) -> None:
        chunks = self._journal.chunks
        blocks = [chunk.block for chunk in chunks]
        damaged = first_damaged(self._part_path, blocks) if self._part_path.exists() else 0
        if damaged == 0:
            found = "is damaged in its first batch" if self._part_path.exists() else "is missing"
            raise OutputError(
                f"{self._part_path} {found}, though {self._journal.path.name} lists "
                f"{len(chunks):,}: delete both files and run the command again"
            )
        if damaged is not None:
            self._journal.keep(damaged)
            sound, where = sum(block.rows for block in blocks[:damaged]), described(blocks, [damaged], "batch")
            self.warnings.append(
                f"{self._part_path} is damaged: {where} is not what was written; the {sound:,} rows before it are "
                "kept, and the others are embedded again"
            )
        self.schema = arrow_file.read_schema(self._part_path)
        self._end = chunks[-1].block.end_offset
        self._part = open_file(self._part_path, os.O_RDWR)
        for chunk in chunks:
            self._add_to_totals(chunk)
        self._count_durable(chunks)

    def begin(self, schema: pa.Schema) -> None:
        """Set the schema of a fresh run, with its metadata, to which the job's fingerprint is added.

        Raises OutputError for dictionary, view and run-end encoded columns, and RuntimeError if the schema is set.
        """
        if self.schema is not None:
            raise RuntimeError("begin was called, but the schema is already set")
        arrow_file.require_plain(schema)
        own = {"fastvec.format": arrow_file.FORMAT, "fastvec.fingerprint": json.dumps(dict(self._job.fingerprint))}
        schema = schema.with_metadata({**(schema.metadata or {}), **{k.encode(): v.encode() for k, v in own.items()}})
        head = arrow_file.head(schema)
        with translated_os_errors(self._output):
            ownership.remove_part(self._part_path)
            self._journal.begin(replace(self._job, choices=self.choices))
            self._part = open_file(self._part_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            sync_folder(self._output.parent)
            write_at(self._part, 0, head)
        self.schema, self._end, self._crc32 = schema, len(head), zlib.crc32(head)

    def write(
        self, batch: pa.RecordBatch, *, counts: Mapping[str, int], errors: Sequence[RowError], batch_tokens: int
    ) -> None:
        """Write a chunk. It is durable after the next commit, which this method makes every 256 MiB or 2 s.

        Raises DiskFullError or OutputError. Durable chunks stay durable, and only `close` may be called afterwards.
        Raises ValueError if the schema of `batch` is not the output's.
        """
        part = self._require_part()
        if not batch.schema.equals(self.schema):
            raise ValueError(f"expected a batch with the output's schema {self.schema}, got {batch.schema}")
        message = arrow_file.encode(batch)
        with translated_os_errors(self._output, self.rows):
            write_at(part, self._end, message)
        self._end += message.size
        block = Block(rows=batch.num_rows, end_offset=self._end, crc32=zlib.crc32(message, self._crc32))
        self._crc32 = 0
        if not self._pending:
            self._pending_bytes, self._pending_since = 0, time.monotonic()
        self._pending_bytes += message.size
        self._pending.append(Chunk(block=block, counts=dict(counts), errors=tuple(errors), batch_tokens=batch_tokens))
        self._add_to_totals(self._pending[-1])
        if self._pending_bytes >= GROUP_BYTES or time.monotonic() - self._pending_since >= GROUP_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make all chunks written durable."""
        part, pending = self._require_part(), self._pending
        if not pending:
            return
        # never retried: after a failed fsync the kernel drops the dirty pages, and the next fsync would report success
        self._part, self._pending = None, []
        try:
            with translated_os_errors(self._output, self.rows):
                os.fsync(part)
                self._journal.append(pending)
        except BaseException:
            os.close(part)
            raise
        self._part = part
        self._count_durable(pending)

    def finish(self, error_lines: Iterable[str], *, verify: bool | None = None) -> None:
        """Commit, append the footer and publish the file under its final name; then release the lock.

        `error_lines` (without line ends) are written to `*.errors.jsonl`. If there are none, the errors file of an
        earlier run is deleted. `verify` says whether the file is read back before it is published; None: its first
        64 MiB, and the rest if that takes little of the time since the writer was opened. Raises OutputError if it is
        not what was written.
        """
        self.commit()
        part, schema, errors = self._require_part(), self.schema, ownership.error_lines(error_lines)
        blocks = [chunk.block for chunk in self._journal.chunks]
        metadata = arrow_file.footer_metadata(schema, self.counts, blocks, ownership.crc32_of(errors))
        with translated_os_errors(self._output, self.rows):
            os.ftruncate(part, self._end)  # remove a partial chunk or footer left by a crash
            footer = arrow_file.footer(self._part_path, schema, blocks, metadata)
            write_at(part, self._end, footer)
            os.fsync(part)
            self._part = None
            os.close(part)
            end = Block(rows=0, end_offset=self._end + len(footer), crc32=zlib.crc32(footer, self._crc32))
            if self._output.suffix == ".parquet":
                self._publish_parquet(errors, verify)
            else:
                self._publish_arrow([*blocks, end], errors, verify)
            self._journal.remove()

    def _publish_arrow(self, blocks: Sequence[Block], errors: bytes, verify: bool | None) -> None:
        """Read back the complete Arrow file, and give it its final name."""
        with self._found_damage(blocks):
            self.verified = read_back(self._part_path, blocks, wanted=verify, job_seconds=self._seconds)
        with ownership.replacing_errors(self._output, errors, read_back=self.verified):
            os.replace(self._part_path, self._output)
        sync_folder(self._output.parent)

    @contextmanager
    def _found_damage(self, blocks: Sequence[Block]) -> Iterator[None]:
        """Turn a DamagedBlockError of the complete Arrow file into an OutputError."""
        try:
            yield
        except DamagedBlockError as error:
            sound = sum(block.rows for block in blocks[: error.index])
            remedy = f"run the same command again, which keeps the first {sound:,} rows"
            if error.index == 0:
                remedy = f"delete it and {self._journal.path.name}, and run the command again"
            where = described(blocks, [error.index], "batch")
            raise OutputError(f"{self._part_path}: {NOT_WRITTEN}: {where}; {remedy}") from None

    def _publish_parquet(self, errors: bytes, verify: bool | None) -> None:
        """Convert the complete Arrow file, read back the result, and give it its final name.

        The conversion compares what it reads, so that the Arrow file, which is then deleted, is not read before.
        """
        source, draft = read_output(self._part_path), draft_path(self._output)
        groups: list[Block] = []

        @contextmanager
        def publishing() -> Iterator[None]:
            try:
                self.verified = read_back(draft, groups, wanted=verify, job_seconds=self._seconds)
            except DamagedBlockError as error:
                where = described(groups, [error.index], "row group")
                raise OutputError(
                    f"{draft}: {NOT_WRITTEN}: {where}; run the same command again, which keeps all rows"
                ) from None
            with ownership.replacing_errors(self._output, errors, read_back=self.verified):
                yield

        with replacing(self._output, around=publishing) as fd, self._found_damage(source.blocks):
            batches = arrow_file.read_intact(self._part_path, source.schema, source.blocks)
            groups += parquet_file.write(
                fd, source.schema, batches, source.vector_columns, source.counts, source.errors_crc32
            )
        ownership.remove_part(self._part_path)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._opened

    def close(self) -> None:
        """Commit the written chunks if possible and release the lock; the unfinished work can be resumed.

        If nothing is durable, the unfinished files are deleted. After `finish` or an earlier `close` this does nothing.
        """
        if self._part is not None:
            with suppress(OSError, OutputError):  # an error is already propagating, or `rows` shows what is durable
                os.ftruncate(self._part, self._end)  # drop a partial chunk: on a full disk the journal needs room
                self.commit()
        if self._part is not None:
            part, self._part = self._part, None
            os.close(part)
        if self._journal.closed:
            return
        with suppress(OSError):
            if not self._journal.chunks:
                ownership.discard(self._journal, self._part_path)
        self._journal.close()

    def _require_part(self) -> int:
        if self._part is None:
            raise RuntimeError("the writer has not begun, is closed, or has failed")
        return self._part

    def _add_to_totals(self, chunk: Chunk) -> None:
        self.counts.update(chunk.counts)
        self.errors += chunk.errors
        self.batch_tokens = chunk.batch_tokens

    def _count_durable(self, chunks: Sequence[Chunk]) -> None:
        self.chunks += len(chunks)
        self.rows += sum(chunk.block.rows for chunk in chunks)
