"""The journal of an unfinished output: JSON lines, each closed by its own CRC32, under a lock.

The first line is the header: what identifies the job. Then comes a line for each chunk, appended after the chunk's
bytes are durable, and made durable itself before anyone counts on it. So the last lines may be torn by a crash, and are
dropped; a damaged line among whole ones is not a crash's work, and is refused.

The journal is also what two runs of one output meet at: an exclusive `flock` is held on it from the first look at the
output to the last. The lock ends with its process. Windows has no flock: there, nothing stops a second run.
"""

import json
import os
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastvec.errors import OutputError, RefusedError
from fastvec.fingerprint import Json
from fastvec.output.arrow_file import Block
from fastvec.system.durable_files import lock, open_file, sync_folder, write_at

_FORMAT = 1
_HEADER_START = b'{"fastvec_journal":'
_SEAL = b',"line_crc32":"'


@dataclass(frozen=True, kw_only=True, slots=True)
class RowError:
    """A row for which no vector came. Never its text."""

    row: int
    code: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What an output is made by; the journal's header."""

    fingerprint: Mapping[str, Json]  # what identifies the job, compared field by field
    environment: Mapping[str, str]  # versions and device: a difference is a warning
    limits: Mapping[str, int]  # of a chunk, for a new run; a resumed one keeps the journal's


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """What the journal knows of one durable chunk."""

    block: Block
    counts: Mapping[str, int]
    errors: tuple[RowError, ...]
    batch_tokens: int


class Journal:
    """An open, locked journal. `job` is None, and `chunks` empty, where nothing was begun."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.job: Job | None = None
        self.chunks: list[Chunk] = []
        self._fd = fd
        self._end = 0

    @classmethod
    def open(cls, path: Path, *, create: bool) -> "Journal":
        """Lock and read the journal at `path`.

        Raises RefusedError where a running process holds it or it is not a journal, OutputError where it is damaged,
        FileNotFoundError where there is none and `create` is False.
        """
        journal = cls(path, _open_locked(path, create=create))
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
        records = [_unseal(line) for line in lines]
        whole = next((i for i, record in enumerate(records) if record is None), len(records))
        if any(records[whole:]):
            raise OutputError(f"{self.path}: line {whole + 1} is damaged, later ones are not; {_delete(self.path)}")
        if whole == 0:
            torn_header = data.rstrip(b"\0")[: len(_HEADER_START)]
            if not _HEADER_START.startswith(torn_header):
                raise RefusedError(f"{self.path} is not a journal of fastvec: move it away, or give another output")
            return
        header, *chunks = (record for record in records[:whole] if record is not None)
        self._end = sum(len(line) + 1 for line in lines[:whole])
        if header.pop("fastvec_journal", None) != _FORMAT:
            raise RefusedError(f"{self.path} is another version's: finish it with that one, or give another output")
        self.job = Job(**header)
        self.chunks = [_chunk(record) for record in chunks]
        if [record["chunk"] for record in chunks] != list(range(len(chunks))):
            raise OutputError(f"{self.path}: its chunks are not in order; {_delete(self.path)}")

    def begin(self, job: Job) -> None:
        """Forget what the journal holds and write a new header, durable when this returns."""
        os.ftruncate(self._fd, 0)
        self.job, self.chunks, self._end = job, [], 0
        self._append([_seal({"fastvec_journal": _FORMAT, **_fields(job)})])
        sync_folder(self.path.parent)

    def append(self, chunks: Sequence[Chunk]) -> None:
        """Add a line for each chunk, over what a crash tore; durable when this returns."""
        first = len(self.chunks)
        self._append(_seal({"chunk": first + i, **_record(chunk)}) for i, chunk in enumerate(chunks))
        self.chunks += chunks

    def _append(self, lines: Iterable[bytes]) -> None:
        data = b"".join(lines)
        write_at(self._fd, self._end, data)
        os.fsync(self._fd)
        self._end += len(data)

    def remove(self) -> None:
        """Delete the journal for good, then end its lock: nobody may lock a journal that is about to go."""
        if sys.platform == "win32":  # deletes no open file
            self.close()
        os.unlink(self.path)
        sync_folder(self.path.parent)
        self.close()

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        """End the lock."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _open_locked(path: Path, *, create: bool) -> int:
    while True:
        fd = open_file(path, os.O_RDWR | (os.O_CREAT if create else 0))
        try:
            lock(fd, path)
            if _is_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # between our open and our lock, a finishing process deleted the journal that we hold


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _delete(path: Path) -> str:
    return f"delete it and {path.with_suffix('.part').name}, and run the command again"


def _seal(record: Mapping[str, Json]) -> bytes:
    body = json.dumps(record, separators=(",", ":")).encode()[:-1]
    return b'%b%b%08x"}\n' % (body, _SEAL, zlib.crc32(body))


def _unseal(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or None where its CRC32 is not that of its bytes."""
    body, seal, crc32 = line.rpartition(_SEAL)
    if not seal or crc32 != b'%08x"}' % zlib.crc32(body):
        return None
    record: dict[str, Any] = json.loads(body + b"}")
    return record


def _fields(job: Job) -> dict[str, Json]:
    return {"fingerprint": job.fingerprint, "environment": dict(job.environment), "limits": dict(job.limits)}


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
