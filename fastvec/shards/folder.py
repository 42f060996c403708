"""The folder of an output in shards: how its files are listed, read and published.

Every file appears whole or not at all. A shard is written elsewhere, in `work`, and published when it is complete; so
the same code serves a local disk, where that is a rename, and an object store, where it is an upload. `open_folder`
opens either by its path or address.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from fastvec.stores import store
from fastvec.stores.address import Address, is_remote
from fastvec.stores.spool import fetched, spool_folder
from fastvec.system.durable_files import make_folder, open_file, sync_folder, translated_os_errors, write_at


class Folder(Protocol):
    """A folder, of local files or in an object store. Names are relative to it, with `/`.

    Attributes:
        location: Its path or address for messages, without credentials.
        work: A local folder for files that are not complete; it survives an interrupted run.
    """

    location: str
    work: Path

    def names(self, inside: str = "") -> dict[str, int]:
        """Return the files in the folder, or in a folder in it, with their sizes in bytes; none if there is none."""
        ...

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises FileNotFoundError."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write a file, unless one of that name exists, which returns False. It is durable when this returns."""
        ...

    def publish(self, path: Path, name: str) -> None:
        """Move the complete, durable file at `path` in `work` to `name`, over an older one; durable at the return."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file, if it exists."""
        ...

    def fetched(self, name: str) -> AbstractContextManager[Path]:
        """Yield the path of a local file with the content of `name`, for the time of the block."""
        ...


class LocalFolder:
    """A folder on a local disk, or on a file system that machines share. It is made when the first file is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.location = str(path)
        self.work = path / "_work"

    def names(self, inside: str = "") -> dict[str, int]:
        with suppress(FileNotFoundError), os.scandir(self.path / inside) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        return {}

    def read(self, name: str) -> bytes:
        with open(f"{self.location}/{name}", "rb", buffering=0) as file:  # without a Path, in half the time
            return file.readall()

    def create(self, name: str, content: bytes) -> bool:
        path = self.path / name
        with translated_os_errors(path):
            make_folder(path.parent)
            make_folder(self.work)
            draft = (
                self.work / f"{path.name}.{uuid4().hex}.tmp"
            )  # processes of several machines may create the same file
            fd = open_file(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                write_at(fd, 0, content)
                os.fsync(fd)
            finally:
                os.close(fd)
            try:
                os.link(draft, path)  # a rename would replace another process's file
                os.unlink(draft)
            except FileExistsError:
                os.unlink(draft)
                return False
            except FileNotFoundError:  # the process that has finished the job deleted `work`
                if not path.exists():
                    raise
                return False
            sync_folder(path.parent)
        return True

    def publish(self, path: Path, name: str) -> None:
        with translated_os_errors(self.path / name):
            os.replace(path, self.path / name)
            sync_folder(self.path)
            sync_folder(path.parent)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.path / name)

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        yield self.path / name


class RemoteFolder:
    """A folder in an object store.

    Of several writers of one file, only one creates it where the store can tell (S3, Google Cloud Storage, Azure);
    elsewhere, the last one replaces the file of the others. Files are written in a local folder, which is found again
    by the address.
    """

    def __init__(self, address: Address) -> None:
        """Make the local folder. Raises OutputError or DiskFullError."""
        self.address = address
        self.location = str(address)
        self.work = spool_folder(address)

    def names(self, inside: str = "") -> dict[str, int]:
        return store.sizes_in(self.address / inside if inside else self.address)

    def read(self, name: str) -> bytes:
        return store.read(self.address / name)

    def create(self, name: str, content: bytes) -> bool:
        return store.create(self.address / name, content)

    def publish(self, path: Path, name: str) -> None:
        store.upload(path, self.address / name)
        os.unlink(path)

    def remove(self, name: str) -> None:
        store.remove(self.address / name)

    def fetched(self, name: str) -> AbstractContextManager[Path]:
        return fetched(self.address / name)


def open_folder(location: str | Path) -> Folder:
    """Return the folder at a path or address. Raises UsageError for an address with credentials, and OutputError."""
    if is_remote(location):
        return RemoteFolder(Address.parse(str(location)))
    return LocalFolder(Path(location))


def is_folder(location: str | Path) -> bool:
    """Return whether a path is that of a folder; an address is, unless it has the suffix of an output file."""
    if is_remote(location):
        return Address.parse(str(location)).suffix not in (".arrow", ".parquet")
    return Path(location).is_dir()
