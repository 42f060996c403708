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
from fastvec.system.durable_files import make_folder, sync_folder, translated_os_errors, write_file

TRIES = 3  # to create a file, while other processes delete the folder where it is written


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
        found: dict[str, int] = {}
        with _translated(self.path / inside), suppress(FileNotFoundError), os.scandir(self.path / inside) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process deleted it since the folder was read
                    if entry.is_file():
                        found[entry.name] = entry.stat().st_size
        return found

    def read(self, name: str) -> bytes:
        path = f"{self.location}/{name}"  # without a Path, in 0.6 of the time
        with _translated(path), open(path, "rb", buffering=0) as file:
            return file.readall()

    def create(self, name: str, content: bytes) -> bool:
        """Write a file, unless one of that name exists, which returns False. It is durable when this returns.

        Only one of several writers creates it, where the file system has hard links. Where it has none (exFAT,
        gcsfuse, some SMB mounts), the last of those that write at the same moment replaces the file of the others,
        and each returns True. Raises OutputError or DiskFullError.
        """
        path = self.path / name
        with translated_os_errors(path):
            tries = 1
            while True:
                try:
                    return self._create(path, content)
                except FileNotFoundError:  # another process finished the job and deleted `work`
                    if path.exists():
                        return False
                    if tries == TRIES:
                        raise
                    tries += 1

    def _create(self, path: Path, content: bytes) -> bool:
        make_folder(path.parent)
        make_folder(self.work)
        draft = self.work / f"{path.name}.{uuid4().hex}.tmp"  # processes of several machines may create the same file
        write_file(draft, content)
        if not _renamed(draft, path):
            return False
        sync_folder(path.parent)
        return True

    def publish(self, path: Path, name: str) -> None:
        with translated_os_errors(self.path / name):
            os.replace(path, self.path / name)
            sync_folder(self.path)
            sync_folder(path.parent)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), _translated(self.path / name):
            os.unlink(self.path / name)

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        yield self.path / name


class RemoteFolder:
    """A folder in an object store.

    Of several writers of one file, only one creates it where the store can tell (S3, Google Cloud Storage, Azure);
    elsewhere, the last one replaces the file of the others. Files are written in a local folder, which is found again
    by the address; who writes there makes it.
    """

    def __init__(self, address: Address) -> None:
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
    """Return the folder at a path or address. Raises UsageError for an address with credentials."""
    if is_remote(location):
        return RemoteFolder(Address.parse(str(location)))
    return LocalFolder(Path(location))


def is_folder(location: str | Path) -> bool:
    """Return whether a path is that of a folder; an address is, unless it has the suffix of an output file.

    Raises OutputError if that cannot be found out, and UsageError for an address with credentials.
    """
    if is_remote(location):
        return Address.parse(str(location)).suffix not in (".arrow", ".parquet")
    with translated_os_errors(Path(location)):
        return Path(location).is_dir()


@contextmanager
def _translated(path: str | Path) -> Iterator[None]:
    """Do what `translated_os_errors` does, except that FileNotFoundError passes."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError:
        with translated_os_errors(Path(path)):
            raise


def _renamed(draft: Path, path: Path) -> bool:
    """Rename the file `draft` to `path`, unless there is a file of that name: return False, and delete the draft."""
    try:
        os.link(draft, path)  # a rename would replace another process's file
        is_first = True
    except FileExistsError:
        is_first = False
    except FileNotFoundError:
        raise
    except OSError:  # file systems without hard links differ in their error codes
        is_first = not path.exists()
        if is_first:
            os.replace(draft, path)
    with suppress(FileNotFoundError):  # it was renamed, or another process deleted its folder
        os.unlink(draft)
    return is_first
