"""Where an output goes: a file or a folder, on a local disk or in a store."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastvec.embedding.remote_output import RemoteOutput
from fastvec.errors import OutputError
from fastvec.shards.folder import Folder, LocalFolder, RemoteFolder
from fastvec.stores.address import Address, is_remote
from fastvec.system.durable_files import translated_os_errors
from fastvec.texts.tokenizer import is_utf8

FILE_SUFFIXES, CONVERTED_SUFFIXES = (".arrow", ".parquet"), (".npy", ".lance")


@dataclass(frozen=True, kw_only=True, slots=True)
class Destination:
    """An output's place. `written` is the local file or folder that is written, beside which inputs are copied."""

    place: Path | Address
    written: Path
    remote: RemoteOutput | None = None  # the place of a file in a store
    folder: Folder | None = None  # of shards


def destination_of(output: str | Path) -> Destination:
    """Return where `output`, a path or an address, is; a folder exists, or its name ends in `/`.

    Raises OutputError if no output can be written there, and UsageError for an address with credentials.
    """
    if is_remote(output):
        return _in_store(str(output))
    path = Path(output)
    if not is_utf8(str(path)):
        raise OutputError(f"{str(path)!r} is not UTF-8, which Arrow requires of file names: choose another -o")
    with translated_os_errors(path):
        is_folder, has_place = path.is_dir() or str(output).endswith("/"), path.parent.is_dir()
        if is_folder and path.exists() and not path.is_dir():
            raise OutputError(f"{path} is not a folder, and -o {output} names one: choose another -o")
    _require_name(path.name, str(output), is_folder=is_folder)
    if not has_place:
        raise OutputError(f"{path.parent} is not a folder: make it first, or choose another -o")
    return Destination(place=path, written=path, folder=LocalFolder(path) if is_folder else None)


def _in_store(output: str) -> Destination:
    address = Address.parse(output)
    _require_name(address.name, str(address), is_folder=output.endswith("/"))
    if output.endswith("/"):
        folder = RemoteFolder(address)
        return Destination(place=address, written=folder.work, folder=folder)
    remote = RemoteOutput(address)
    return Destination(place=address, written=remote.path, remote=remote)


def _require_name(name: str, output: str, *, is_folder: bool) -> None:
    """Raise OutputError for a folder with the name of a file, and for a file that has not the name of one."""
    path = PurePosixPath(name)
    if is_folder:
        if path.suffix in (*FILE_SUFFIXES, *CONVERTED_SUFFIXES):
            raise OutputError(f"{output} is a folder with the name of a file: give -o another name, as {path.stem}/")
        return
    if path.suffix in CONVERTED_SUFFIXES:
        arrow = f"{output.removesuffix(path.suffix)}.arrow"
        raise OutputError(
            f"{output} cannot be embedded to: embed to {arrow}, then run fastvec convert {arrow} {output}"
        )
    if path.suffix not in FILE_SUFFIXES:
        problem, stem = "ends in neither .arrow nor .parquet", path.stem
        if path.name in FILE_SUFFIXES:
            problem, stem = f"has no name before {path.name}", "vecs"
        raise OutputError(f"{output} {problem}: name a file, such as {stem}.arrow, or a folder of shards, {stem}/")


@contextmanager
def written_to(output: str | Path) -> Iterator[Path]:
    """Yield the local file or folder that is written; one for an output in a store is deleted if nothing is in it."""
    destination = destination_of(output)
    try:
        yield destination.written
    finally:
        if isinstance(destination.place, Address):
            with suppress(OSError):
                (destination.written if destination.remote is None else destination.written.parent).rmdir()
