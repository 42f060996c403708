"""The journal of an unfinished output: a locked file of JSON lines, each with its own CRC32.

The first line is the header, which identifies the job. One line per chunk follows. It is appended after the chunk's
bytes are durable, and is made durable itself before any code relies on it. So a crash can tear only the last lines,
which are dropped on reading. A damaged line before an intact one cannot come from a crash and is an error.

The journal also prevents concurrent runs on one output: a run holds an exclusive `flock` on it from its first access to
the output to its last. The lock ends with the process. Windows has no flock, and some network file systems have no
locks: there, nothing prevents a second run.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastvec.errors import OutputError, RefusedError
from fastvec.fingerprint import Json
from fastvec.system.blocks import Block
from fastvec.system.durable_files import open_locked, sync_folder, write_at
from fastvec.system.sealed import sealed, unsealed

_FORMAT = 1
_HEADER_START = b'{"fastvec_journal":'


@dataclass(frozen=True, kw_only=True, slots=True)
class RowError:
    """A row that got no vector, and the reason's code. It never contains the row's text."""

    row: int
    code: str
    column: str = ""  # the text column, if there are several


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The job that writes an output; the journal's header."""

    fingerprint: Mapping[str, Json]  # identifies the job; compared field by field
    environment: Mapping[str, str]  # versions and device; a difference is only a warning
    limits: Mapping[str, int]  # chunk limits of a new run; a resumed run keeps the journal's
    choices: Mapping[str, Json] | None = None  # what a CPU computes by; a resumed run keeps the journal's


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """The journal's record of one durable chunk."""

    block: Block
    counts: Mapping[str, int]
    errors: tuple[RowError, ...]
    batch_tokens: int


class Journal:
    """An open, locked journal. If it has no header yet, `job` is None and `chunks` is empty."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.job: Job | None = None
        self.chunks: list[Chunk] = []
        self._fd = fd
        self._end = 0

    @classmethod
    def open(cls, path: Path, *, create: bool) -> "Journal":
        """Lock and read the journal at `path`.

        Raises RefusedError if a running process holds the lock, or the file is not a journal or has another version's
        format; OutputError if it is damaged; FileNotFoundError if it does not exist and `create` is False.
        """
        journal = cls(path, open_locked(path, create=create))
        try:
            journal._read()
        except BaseException:
            journal.close()
            raise
        return journal

    def _read(self) -> None:
        with self.path.open("rb") as file:
            data = file.read()
        *lines, _torn = data.split(b"\n")
        records = [unsealed(line) for line in lines]
        whole = next((i for i, record in enumerate(records) if record is None), len(records))
        if any(records[whole:]):
            raise OutputError(
                f"{self.path}: line {whole + 1} is damaged, but later lines are not; {_delete_hint(self.path)}"
            )
        if whole == 0:
            torn_header = data.rstrip(b"\0")[: len(_HEADER_START)]
            if not _HEADER_START.startswith(torn_header):
                raise RefusedError(f"{self.path} is not a fastvec journal: move it away, or choose another output")
            return
        header, *chunks = (record for record in records[:whole] if record is not None)
        self._end = sum(len(line) + 1 for line in lines[:whole])
        if header.pop("fastvec_journal", None) != _FORMAT:
            raise RefusedError(f"{self.path} is from another version: finish it with that, or choose another output")
        self.job = Job(**header)
        self.chunks = [_chunk(record) for record in chunks]
        if [record["chunk"] for record in chunks] != list(range(len(chunks))):
            raise OutputError(f"{self.path}: its chunks are not in order; {_delete_hint(self.path)}")

    @property
    def unfinished(self) -> Job | None:
        """The job that can be resumed, which has durable chunks; None if there is none."""
        return self.job if self.chunks else None

    def begin(self, job: Job) -> None:
        """Clear the journal and write a new header, which is durable when this returns."""
        os.ftruncate(self._fd, 0)
        self.job, self.chunks, self._end = job, [], 0
        self._append([sealed({"fastvec_journal": _FORMAT, **_fields(job)})])
        sync_folder(self.path.parent)

    def append(self, chunks: Sequence[Chunk]) -> None:
        """Append a line for each chunk, overwriting torn lines of a crash; durable when this returns."""
        first = len(self.chunks)
        self._append(sealed({"chunk": first + i, **_record(chunk)}) for i, chunk in enumerate(chunks))
        self.chunks += chunks

    def keep(self, chunks: int) -> None:
        """Drop all chunks but the first `chunks`; durable when this returns."""
        with self.path.open("rb") as file:
            self._end = sum(len(file.readline()) for _ in range(1 + chunks))
        os.ftruncate(self._fd, self._end)
        os.fsync(self._fd)
        del self.chunks[chunks:]

    def _append(self, lines: Iterable[bytes]) -> None:
        data = b"".join(lines)
        write_at(self._fd, self._end, data)
        os.fsync(self._fd)
        self._end += len(data)

    def drop_failed(self) -> None:
        """Remove lines of an append that failed: they may be on the disk, and list chunks that are discarded."""
        os.ftruncate(self._fd, self._end)

    def remove(self) -> None:
        """Delete the journal durably, then release its lock, so that no other run locks a journal being deleted."""
        if sys.platform == "win32":  # cannot delete an open file
            self.close()
        os.unlink(self.path)
        sync_folder(self.path.parent)
        self.close()

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        """Release the lock."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _delete_hint(path: Path) -> str:
    return f"delete it and {path.with_suffix('.part').name}, and run the command again"


def _fields(job: Job) -> dict[str, Json]:
    return {
        "fingerprint": job.fingerprint,
        "environment": dict(job.environment),
        "limits": dict(job.limits),
        "choices": job.choices,
    }


def _record(chunk: Chunk) -> dict[str, Json]:
    errors = [asdict(error) for error in chunk.errors]
    return {**asdict(chunk.block), "counts": dict(chunk.counts), "errors": errors, "batch_tokens": chunk.batch_tokens}


def _chunk(record: Mapping[str, Any]) -> Chunk:
    return Chunk(
        block=Block(rows=record["rows"], end_offset=record["end_offset"], crc32=record["crc32"]),
        counts=record["counts"],
        errors=tuple(RowError(**error) for error in record["errors"]),
        batch_tokens=record["batch_tokens"],
    )
