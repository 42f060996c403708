"""An output in a store: which job's the file there is, and its upload.

The file is written in a local folder, by which an interrupted run resumes, and uploaded when it is complete.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from fastvec.errors import OutputError, RefusedError, one_line
from fastvec.fingerprint import REMEDY, Json
from fastvec.output import parquet_file
from fastvec.output.journal import Job
from fastvec.output.ownership import (
    FIRST_LINE_BYTES,
    beside,
    errors_name,
    errors_path,
    finished_counts,
    is_row_error,
    promised,
    refuse_another,
)
from fastvec.stores.address import Address
from fastvec.stores.remote_file import RemoteFile
from fastvec.stores.spool import spool_folder
from fastvec.stores.store import find, read, remove, upload
from fastvec.system.durable_files import locked, translated_os_errors

logger = logging.getLogger(__name__)


class RemoteOutput:
    """The output of a job at an address.

    Attributes:
        address: Where it is uploaded to.
        path: The local file that is written, and deleted once it is uploaded.
    """

    def __init__(self, address: Address) -> None:
        """Make the local folder. Raises OutputError or DiskFullError."""
        self.address = address
        folder = spool_folder(address)
        with translated_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / address.name

    def fingerprint(self) -> Mapping[str, Json]:
        """Return the fingerprint of the file at the address; empty if there is none, or it is not fastvec's."""
        with suppress(RefusedError):
            found = self._published()
            return {} if found is None else found[0]
        return {}

    def finished_counts(self, job: Job, *, overwrite: bool, check: Callable[[], None]) -> dict[str, int] | None:
        """Return the counts of this job's finished output, or None if there is work to do, as for a local output.

        A finished file that was not uploaded yet, because that failed, is uploaded.
        Raises RefusedError if a file at the address, or local unfinished work for it, belongs to another job, unless
        `overwrite`; OutputError if the store cannot be asked.
        """
        if not overwrite:
            found = self._published()
            if found is not None:
                refuse_another(self.address, found[0], job)
                if not beside(self.path, ".journal").exists():
                    self._clear()
                return found[1]
            self._require_own_errors()
        try:
            counts = finished_counts(self.path, job) if self.path.exists() else None
        except RefusedError:
            if not overwrite:
                raise
            return None
        if counts is not None:
            self.publish(job, overwrite=overwrite, check=check)
        return counts

    def publish(self, job: Job, *, overwrite: bool, check: Callable[[], None]) -> None:
        """Upload the finished local file, after its errors file, and delete both.

        `check` is called after each part. If the upload fails or `check` raises, they stay, and the same command
        uploads them. Raises RefusedError if another job's file was written to the address meanwhile, unless
        `overwrite`; OutputError.
        """
        with translated_os_errors(self.path), locked(beside(self.path, ".upload")):
            self._upload(job, overwrite, check)

    def _upload(self, job: Job, overwrite: bool, check: Callable[[], None]) -> None:
        logger.info("uploading %s bytes to %s", f"{self.path.stat().st_size:,}", self.address)
        errors = errors_path(self.path)
        if errors.exists():
            upload(errors, self._errors, check=check)
        elif not self._are_errors_foreign():
            remove(self._errors)  # of an earlier run, as beside a local output
        if not upload(self.path, self.address, exclusive=not overwrite, check=check):
            found = self._published()
            if found is not None:
                refuse_another(self.address, found[0], job)
        self._clear()

    @property
    def _errors(self) -> Address:
        return self.address.with_name(errors_name(self.address.name))

    def _require_own_errors(self) -> None:
        if self._are_errors_foreign():
            raise RefusedError(f"{self._errors} is not a list of row errors, but would be overwritten; {REMEDY}")

    def _are_errors_foreign(self) -> bool:
        try:
            first = read(self._errors, 0, FIRST_LINE_BYTES)
        except FileNotFoundError:
            return False
        return not is_row_error(first.partition(b"\n")[0])

    def _published(self) -> tuple[Mapping[str, Json], dict[str, int]] | None:
        """Return the fingerprint and counts of the file at the address; None if there is none."""
        try:
            entry = find(self.address, OutputError)
        except FileNotFoundError:
            return None
        if entry.is_folder:
            raise OutputError(f"{self.address} is a folder with the name of a file: give -o another name")
        return promised(self.address, lambda: _read_metadata(RemoteFile(self.address, entry.size, entry.version)))

    def _clear(self) -> None:
        shutil.rmtree(self.path.parent, ignore_errors=True)


def _read_metadata(file: RemoteFile) -> tuple[pa.Schema, dict[str, str]]:
    with file.open(stream=False) as opened, pa.PythonFile(opened, mode="r") as source:
        if source.read(len(parquet_file.MAGIC)) == parquet_file.MAGIC:
            try:
                with pq.ParquetFile(source) as parquet:
                    return parquet_file.read_metadata(parquet)
            except OSError as error:  # what Arrow raises for a malformed footer
                raise ValueError(one_line(error)) from error
        reader = ipc.open_file(source)
        metadata = {key.decode(): value.decode() for key, value in (reader.metadata or {}).items()}
        return reader.schema, metadata
