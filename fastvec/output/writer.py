"""The output of an embedding job: one Arrow IPC file, in order, whole or resumable, never in between.

While a job runs, `vecs.arrow.part` holds the file's own bytes and `vecs.arrow.journal` says how many of them count:

    commit    fsync the data, append a line a chunk to the journal, fsync that: a listed chunk is durable
    resume    go on where the last listed chunk ends: the same bytes as without the interruption
    finish    append the footer, fsync, rename to `vecs.arrow`, fsync the folder, delete the journal

The final name appears in one step, when everything is there. `with pyarrow.ipc.new_file(...)` on it would not do: that
writes a valid footer even when an exception passes through, a short file that looks whole.
"""

import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from fastvec.errors import OutputError, RefusedError
from fastvec.fingerprint import Json, differences
from fastvec.output import arrow_file, ownership
from fastvec.output.arrow_file import Block
from fastvec.output.journal import Chunk, Job, Journal, RowError
from fastvec.output.ownership import beside, finished_counts
from fastvec.system.durable_files import explained, open_file, sync_folder, write_at

__all__ = ["Job", "Json", "RowError", "Writer", "finished_counts"]

# a commit is two fsyncs: 0.2 ms on an SSD, some 50 ms on a spinning disk, and nothing if one comes every 2 s
GROUP_BYTES = 256 << 20
GROUP_SECONDS = 2.0


class Writer:
    """Writes the chunks of a job in order, each as one record batch. For one thread at a time.

    limits: the chunk limits in force; a resumed run's are the journal's.
    rows, chunks: how much is durable; a resumed run goes on after these.
    counts, errors, batch_tokens: sums over all chunks written, the row errors in order, the last chunk's token budget.
    schema: the output's; in a fresh run None until `begin`.
    warnings: lines for the user.
    """

    def __init__(self, output: Path, job: Job, journal: Journal) -> None:
        """`Writer.open` is the way in."""
        self.limits = job.limits
        self.rows = 0
        self.chunks = 0
        self.counts: Counter[str] = Counter()
        self.errors: list[RowError] = []
        self.batch_tokens: int | None = None
        self.schema: pa.Schema | None = None
        self.warnings: list[str] = []
        self._output = output
        self._part_path = beside(output, ".part")
        self._part: int | None = None  # the open file; None before it is begun and after it failed
        self._job = job
        self._journal = journal
        self._end = 0  # of the last chunk written
        self._crc32 = 0  # of the bytes since then: the head's, before the first chunk
        self._pending: list[Chunk] = []  # written, not durable
        self._pending_bytes = 0
        self._pending_since = 0.0

    @classmethod
    def open(cls, output: Path, job: Job, *, overwrite: bool = False) -> "Writer":
        """Lock `output`, to write it from its start or from where this job's unfinished work ends.

        `overwrite` replaces another job's files, and a finished output, which stays readable until the new one takes
        its place. It never discards unfinished work of the same job.
        Raises what `finished_counts` raises, and RefusedError where the output was finished meanwhile.
        """
        with explained(output):
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
        begun = journal.job
        if begun is None or not journal.chunks or ownership.mismatch(begun.fingerprint, self._job):
            return
        if overwrite and not self._part_path.exists():  # killed after its rename: only the journal is left
            return
        self.limits = begun.limits
        for difference in differences(begun.environment, dict(self._job.environment), ""):
            self.warnings.append(f"{difference}: vectors may differ from the earlier ones in their last digits")
        self._resume()

    def _resume(self) -> None:
        chunks = self._journal.chunks
        blocks = [chunk.block for chunk in chunks]
        damaged = arrow_file.first_damaged(self._part_path, blocks) if self._part_path.exists() else 0
        if damaged is not None:
            sound = sum(chunk.block.rows for chunk in chunks[:damaged])
            raise OutputError(
                f"{self._part_path} is damaged after its first {sound} rows, though {self._journal.path.name} lists "
                f"more: delete both files and run the command again"
            )
        self.schema = arrow_file.read_schema(self._part_path)
        self._end = chunks[-1].block.end_offset
        self._part = open_file(self._part_path, os.O_RDWR)
        for chunk in chunks:
            self._add(chunk)
        self._settle(chunks)

    def begin(self, schema: pa.Schema) -> None:
        """Fix the schema of a fresh run, its metadata included; the job's fingerprint is added to those.

        Raises OutputError for a column that an output cannot hold: dictionaries, views, run-end encoded ones.
        """
        if self.schema is not None:
            raise RuntimeError("begin is for fresh runs: this one has a schema")
        arrow_file.require_plain(schema)
        own = {"fastvec.format": arrow_file.FORMAT, "fastvec.fingerprint": json.dumps(dict(self._job.fingerprint))}
        schema = schema.with_metadata({**(schema.metadata or {}), **{k.encode(): v.encode() for k, v in own.items()}})
        head = arrow_file.head(schema)
        with explained(self._output):
            ownership.remove_part(self._part_path)
            self._journal.begin(self._job)
            self._part = open_file(self._part_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            sync_folder(self._output.parent)
            write_at(self._part, 0, head)
        self.schema, self._end, self._crc32 = schema, len(head), zlib.crc32(head)

    def write(
        self, batch: pa.RecordBatch, *, counts: Mapping[str, int], errors: Sequence[RowError], batch_tokens: int
    ) -> None:
        """Add a chunk. It is durable after the next commit, which comes by itself every 256 MB or 2 s.

        Raises DiskFullError or OutputError; what was durable stays so, and only `close` may follow.
        """
        part = self._require_part()
        if not batch.schema.equals(self.schema):
            raise ValueError(f"a batch of the output's schema is needed, {self.schema}, got {batch.schema}")
        message = arrow_file.encode(batch)
        with explained(self._output, self.rows):
            write_at(part, self._end, message)
        self._end += message.size
        block = Block(rows=batch.num_rows, end_offset=self._end, crc32=zlib.crc32(message, self._crc32))
        self._crc32 = 0
        if not self._pending:
            self._pending_bytes, self._pending_since = 0, time.monotonic()
        self._pending_bytes += message.size
        self._pending.append(Chunk(block=block, counts=dict(counts), errors=tuple(errors), batch_tokens=batch_tokens))
        self._add(self._pending[-1])
        if self._pending_bytes >= GROUP_BYTES or time.monotonic() - self._pending_since >= GROUP_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make all chunks written durable."""
        part, pending = self._require_part(), self._pending
        if not pending:
            return
        # never tried again: after a failed fsync the kernel forgets the bytes, and the next fsync would succeed
        self._part, self._pending = None, []
        try:
            with explained(self._output, self.rows):
                os.fsync(part)
                self._journal.append(pending)
        except BaseException:
            os.close(part)
            raise
        self._part = part
        self._settle(pending)

    def finish(self, error_lines: Iterable[str]) -> None:
        """Commit, complete the file and give it its name; `error_lines` (without line ends) go into `*.errors.jsonl`.

        Without any, an errors file of an earlier run is deleted. Ends the lock.
        """
        self.commit()
        part, schema = self._require_part(), self.schema
        blocks = [chunk.block for chunk in self._journal.chunks]
        metadata = arrow_file.footer_metadata(schema, self.counts, blocks)
        with explained(self._output, self.rows):
            os.ftruncate(part, self._end)  # half a chunk or a footer may follow, from before a crash
            write_at(part, self._end, arrow_file.footer(self._part_path, schema, blocks, metadata))
            os.fsync(part)
            self._part = None
            os.close(part)
            _write_errors(ownership.errors_path(self._output), error_lines)
            sync_folder(self._output.parent)  # before the rename: a finished output has its errors file
            os.replace(self._part_path, self._output)
            sync_folder(self._output.parent)
            self._journal.remove()

    def close(self) -> None:
        """End the lock without finishing: commit what is written if possible, and leave work that resumes.

        Where nothing is durable, nothing is left behind. After `finish`, or a second time, this does nothing.
        """
        if self._part is not None:
            with suppress(OSError, OutputError):  # an error is on its way already, or `rows` tells
                os.ftruncate(self._part, self._end)  # on a full disk, half a chunk makes room for the journal's lines
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
            raise RuntimeError("the writer is not begun, or is closed, or failed")
        return self._part

    def _add(self, chunk: Chunk) -> None:
        self.counts.update(chunk.counts)
        self.errors += chunk.errors
        self.batch_tokens = chunk.batch_tokens

    def _settle(self, chunks: Sequence[Chunk]) -> None:
        self.chunks += len(chunks)
        self.rows += sum(chunk.block.rows for chunk in chunks)


def _write_errors(path: Path, lines: Iterable[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    temporary = beside(path, ".part")
    if not data:
        temporary.unlink(missing_ok=True)
        if ownership.is_errors_file(path):
            path.unlink(missing_ok=True)
        return
    fd = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_at(fd, 0, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)
