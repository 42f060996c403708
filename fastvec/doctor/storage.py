"""Check the folders that fastvec writes to, by writing, locking and deleting a file."""

import errno
import os
import shutil
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fastvec.doctor.report import Outcome, outcome
from fastvec.stores.address import Address, is_remote
from fastvec.stores.spool import VARIABLE, spool_root
from fastvec.system.durable_files import lock, open_file, sync_folder, write_at

PROBE = bytes(1 << 16)
MILLION_VECTORS = 1_000_000 * 1024 * 4, "a million vectors of 1,024 dimensions in float32"
SMALL_MODEL = 600_000_000 * 2, "a model of 0.6 billion parameters in bfloat16"


class Found(NamedTuple):
    free: int
    locks: bool


def check_output(output: str | Path) -> Outcome:
    if is_remote(output):
        Address.parse(str(output))
        return outcome("in an object store, which is not tried: nothing here uses the network")
    needs, what = MILLION_VECTORS
    folder = _existing(Path(output))
    try:
        found = probe(folder)
    except OSError as error:
        return outcome("", failures=[_problem(folder, error, "give another folder with -o")])
    notes = []
    if found.free < needs:
        notes.append(f"{what} take {needs / 1e9:.1f} GB: make room, or give another folder with -o")
    if not found.locks:
        notes.append("this file system has no locks (flock): never start two runs with one output")
    return outcome(_description(folder, found), notes=notes)


def check_temporary() -> Outcome:
    remedy = "set TMPDIR to a folder that can be written"
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError:
        return outcome("", failures=[f"no folder for temporary files can be written: {remedy}"])
    try:
        return outcome(_description(folder, probe(folder)))
    except OSError as error:
        return outcome("", failures=[_problem(folder, error, remedy)])


def check_spool() -> Outcome:
    """Check the folder for files of object stores; without it, everything else works."""
    remedy = f"set {VARIABLE} to a folder that can be written, for inputs and outputs in object stores"
    return check_cache(spool_root(), MILLION_VECTORS[0], remedy, MILLION_VECTORS[1])


def check_hub_cache() -> Outcome:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    try:
        with suppress(FileNotFoundError), os.scandir(folder):
            pass
    except OSError as error:
        remedy = "models of the hub cannot be used: give this user access, or set HF_HUB_CACHE to another folder"
        return outcome("", failures=[_problem(folder, error, remedy)])
    return check_cache(
        folder, SMALL_MODEL[0], "set HF_HUB_CACHE to a folder that can be written, to download models", SMALL_MODEL[1]
    )


def check_cache(folder: Path, needs: int, remedy: str, what: str = "") -> Outcome:
    """Check a folder without which most of fastvec works; `what` needs so many bytes there."""
    there = _existing(folder)
    try:
        found = probe(there)
    except OSError as error:
        return outcome("", notes=[_problem(there, error, remedy)])
    few = [f"{what} takes {needs / 1e9:.1f} GB: make room"] if found.free < needs else []
    return outcome(_description(folder, found), notes=few)


def probe(folder: Path) -> Found:
    """Write, lock, sync and delete a file in `folder`. Raises OSError."""
    path = folder / f".fastvec-{uuid.uuid4().hex}"
    fd = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        locks = lock(fd, path)
        write_at(fd, 0, PROBE)
        os.fsync(fd)
    finally:
        os.close(fd)
        os.unlink(path)
    sync_folder(folder)
    return Found(shutil.disk_usage(folder).free, locks)


def _existing(path: Path) -> Path:
    """Return the folder `path`, or the one above that exists: the others are made when they are needed."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), path)


def _description(folder: Path, found: Found) -> str:
    locked = "written, synced and locked" if found.locks else "written and synced"
    return f"{folder}, {found.free / 1e9:.1f} GB free; {locked}"


def _problem(folder: Path, error: OSError, remedy: str) -> str:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"{folder}: no space left: make room, or {remedy}"
    found = error.strerror or str(error)
    if error.errno == errno.ENOENT and folder.is_dir():  # as /proc, where nothing can be made
        found = "no file can be made there"
    return f"{folder}: {found}: {remedy}"
