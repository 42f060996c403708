"""Lists, reads, writes and removes files of a store. A written file appears under its name whole, or not at all.

What was tried on an S3 server, with 30 MB of a longer file written before an exception or a kill:

    pyarrow's output stream, an exception inside `with`        publishes the 30 MB
    pyarrow's output stream, garbage-collected                 publishes the 30 MB
    fsspec's file, an exception inside `with`, or collected    publishes the 30 MB
    s3fs' `put_file`, killed in the middle (5 times)           publishes nothing

So a file is complete on a local disk before it is uploaded, and the upload is one call that names it at its end: of S3
and Google Cloud Storage it completes a multipart or resumable upload, of Azure it commits the blocks, of the hub it is
one commit. In any other store it is written under another name and renamed.
"""

import errno
import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from fastvec.errors import InputError, OutputError
from fastvec.stores.address import Address
from fastvec.stores.errors import translated_store_errors
from fastvec.system.durable_files import translated_os_errors

# of 50 MiB each, in memory; ten at a time, s3fs' default, would take 500 MB
PARTS_AT_ONCE = 3
# what a store calls the version of a file, the most telling first
_VERSIONS = ("ETag", "etag", "xet_hash", "blob_id", "generation", "md5", "sha256")
_DRAFT = ".upload"  # the end of a name; it begins with a dot
_TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file of a store, or a folder, which has no size and no version."""

    is_folder: bool
    size: int
    version: str  # the etag, or what the store has instead: a generation, a hash, the time of the last change


def connected(address: Address) -> tuple[Any, str]:
    """Return fsspec's file system for an address, without cached listings, and the path in it."""
    from fsspec.core import url_to_fs

    options = {"max_concurrency": PARTS_AT_ONCE} if address.scheme in ("s3", "s3a") else {}
    system, path = url_to_fs(str(address), **options)
    system.invalidate_cache()
    return system, path


def find(address: Address, kind: type[InputError] | type[OutputError] = InputError) -> Entry:
    """Look a file or a folder up. Raises FileNotFoundError, and an error of the `kind` if the store cannot be asked."""
    with translated_store_errors(address, kind):
        system, path = connected(address)
        return _entry(system.info(path))


def _entry(info: Mapping[str, Any]) -> Entry:
    version = next((info[key] for key in (*_VERSIONS, *_TIMES) if info.get(key)), "")
    return Entry(
        is_folder=info["type"] == "directory", size=int(info.get("size") or 0), version=str(version).strip('"')
    )


def files_below(folder: Address) -> list[Address]:
    """Return all files below a folder, in the order of their names; none if there is no such folder.

    Raises InputError if the store cannot be asked.
    """
    with translated_store_errors(folder, InputError):
        system, path = connected(folder)
        names = system.find(path)
    inside = path.rstrip("/") + "/"
    found = [folder / name[len(inside) :] for name in names if name.startswith(inside) and not name.endswith("/")]
    return sorted(found, key=lambda one: one.sort_key)


def sizes_in(folder: Address) -> dict[str, int]:
    """Return the names of the files in a folder, with their sizes; none if there is no such folder.

    Files that a killed process did not rename are left out.
    """
    try:
        with translated_store_errors(folder, OutputError):
            system, path = connected(folder)
            entries = system.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    files = [one for one in entries if one["type"] == "file" and one["name"].rstrip("/") != path.rstrip("/")]
    named = [(posixpath.basename(one["name"].rstrip("/")), one) for one in files]
    return {name: int(one["size"] or 0) for name, one in named if name and not _is_draft(name)}


def _is_draft(name: str) -> bool:
    return name.startswith(".") and name.endswith(_DRAFT)


def read(address: Address, begin: int | None = None, end: int | None = None) -> bytes:
    """Return the content of a file, or of a range of it. Raises FileNotFoundError and OutputError."""
    with translated_store_errors(address, OutputError):
        system, path = connected(address)
        return cast(bytes, system.cat_file(path, start=begin, end=end))


def create(address: Address, content: bytes) -> bool:
    """Write a file unless there is one, which returns False. Raises OutputError.

    S3, Google Cloud Storage and Azure guarantee that only one of several writers creates it. Elsewhere the last of
    those that write at the same time wins.
    """
    with _writing(address) as (system, path):
        if _writes_whole_files(system, address):
            return _exclusively(system, path, lambda mode: system.pipe_file(path, content, mode=mode))
        if system.exists(path):
            return False
        folder = posixpath.dirname(path)
        draft = posixpath.join(folder, f".{uuid4().hex}{_DRAFT}")  # fsspec's mv would take [1] in a name for a pattern
        system.makedirs(folder, exist_ok=True)
        system.pipe_file(draft, content)
        try:
            system.mv(draft, path)
        except Exception:  # each library has errors of its own for a file that exists
            if not system.exists(path):
                raise
            system.rm_file(draft)
            return False
    return True


def upload(local: Path, address: Address, *, exclusive: bool = False, check: Callable[[], None] | None = None) -> bool:
    """Copy a complete local file into the store; returns False if it is `exclusive` and there is one of that name.

    `check` is called after each part, and stops the upload if it raises. The libraries try again what fails, and send
    checksums of what they send; the size is compared at the end. Raises OutputError.
    """
    want = local.stat().st_size
    with _writing(address) as (system, path):
        if address.scheme == "hf":
            _commit(system, path, local)
        elif _writes_whole_files(system, address):
            options = {"callback": _callback(check)} if check is not None else {}
            if not exclusive:
                system.put_file(str(local), path, **options)
            elif not _exclusively(system, path, lambda mode: system.put_file(str(local), path, mode=mode, **options)):
                return False
        else:
            if exclusive and system.exists(path):
                return False
            draft = posixpath.join(posixpath.dirname(path), f".{posixpath.basename(path)}{_DRAFT}")
            system.put_file(str(local), draft)
            system.mv(draft, path)
        system.invalidate_cache()
        have = _entry(system.info(path)).size
        if have != want:
            system.rm_file(path)
            raise OutputError(f"{address}: has {have:,} bytes after its upload, not {want:,}; run the command again")
    return True


def _writes_whole_files(system: Any, address: Address) -> bool:
    """Return whether a store names a file at the end of its upload; in another one, a kill can leave half of it."""
    return address.scheme == "hf" or getattr(system, "async_impl", False)  # the latter are the libraries of stores


@contextmanager
def _writing(address: Address) -> Iterator[tuple[Any, str]]:
    try:
        with translated_store_errors(address, OutputError):
            yield connected(address)
    except FileNotFoundError:
        raise OutputError(f"{address}: there is no such bucket: make it first, or choose another -o") from None


def _exclusively(system: Any, path: str, write: Callable[[str], Any]) -> bool:
    try:
        write("create")
    except FileExistsError:
        return False
    except OSError as error:  # other servers of S3 say less about the condition that failed than Amazon's
        if error.errno == errno.EINVAL and "pre-condition" in str(error):
            return False
        if error.errno != errno.ENOSYS:
            raise
    except NotImplementedError:
        pass
    else:
        return True
    if system.exists(path):  # a server or library without conditional writes
        return False
    write("overwrite")
    return True


def _callback(check: Callable[[], None]) -> Any:
    from fsspec.callbacks import Callback

    class Checking(Callback):  # type: ignore[misc]
        def call(self, *_: Any, **__: Any) -> None:
            check()

    return Checking()


def _commit(system: Any, path: str, local: Path) -> None:
    """Upload a file to the Hugging Face hub: a commit of a repository, or a file of a bucket.

    `HfFileSystem.put_file` would commit what it has if reading the local file fails.
    """
    from huggingface_hub import HfApi

    api, place = HfApi(endpoint=system.endpoint, token=system.token), system.resolve_path(path)
    if hasattr(place, "bucket_id"):
        api.batch_bucket_files(place.bucket_id, add=[(str(local), place.path)])
        return
    api.upload_file(
        path_or_fileobj=str(local),
        path_in_repo=place.path_in_repo,
        repo_id=place.repo_id,
        repo_type=place.repo_type,
        revision=place.revision,
    )


def remove(address: Address) -> None:
    """Delete a file, if it exists. Raises OutputError."""
    with suppress(FileNotFoundError), translated_store_errors(address, OutputError):
        system, path = connected(address)
        system.rm_file(path)


def download(address: Address, local: Path) -> None:
    """Copy a file of the store to a local one. Raises FileNotFoundError, OutputError and DiskFullError."""
    with translated_store_errors(address, OutputError):
        system, path = connected(address)
        size = _entry(system.info(path)).size
        try:
            system.get_file(path, str(local))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            with translated_os_errors(local):
                raise
        if local.stat().st_size != size:
            raise OutputError(f"{address}: {local.stat().st_size:,} of its {size:,} bytes were received; try again")
