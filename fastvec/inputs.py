"""Which files a corpus is made of, and in which order: files, folders and patterns as they were given."""

import os
import re
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from fastvec.errors import InputError, UsageError

SUFFIXES = (".parquet", ".arrow")  # what a folder is searched for; a file given by name may have any suffix
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def find_files(inputs: Sequence[str | Path], *, output: Path | None = None) -> list[Path]:
    """The files of `inputs`, in the order given; a folder's, searched recursively, and a pattern's are sorted.

    Raises InputError for an input that is not there, and UsageError where a file would be read twice or `output`
    would be read as well.
    """
    if not inputs:
        raise UsageError("no input was given: name a Parquet or Arrow file, a folder or a pattern")
    found = [file for given in inputs for path in _paths(str(given)) for file in _files(path, output)]
    seen: dict[Path, Path] = {}
    for file in found:
        real = file.resolve()
        if real in seen:
            raise UsageError(f"{file}: the same file as the input {seen[real]}; name it once")
        if output is not None and real == output.resolve():
            raise UsageError(f"{file}: both an input and the output; choose another output")
        seen[real] = file
    return found


def _paths(given: str) -> list[Path]:
    if scheme := SCHEME.match(given):  # an address may hold a password: only its scheme is repeated
        raise InputError(f"{scheme[1]}:// addresses are not read: download the files and name them by their paths")
    if os.path.exists(given):
        return [Path(given)]
    if paths := sorted(Path(path) for path in glob(given, recursive=True)):
        return paths
    if any(character in given for character in "*?["):
        raise InputError(f"{given}: no file matches the pattern")
    raise InputError(f"{given}: no such file or folder")


def _files(path: Path, output: Path | None) -> list[Path]:
    if not path.is_dir():
        return [path]
    if output is not None and output.resolve().is_relative_to(path.resolve()):
        raise UsageError(f"{output}: the output is inside the input folder {path}; put it elsewhere")
    files = sorted(_walk(path))
    if not files:
        raise InputError(f"{path}: the folder holds no {' or '.join('*' + suffix for suffix in SUFFIXES)} file")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """Like dataset readers, skip the hidden and the bookkeeping: names that begin with a dot or an underscore."""
    for parent, folders, names in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        for name in names:
            if name.endswith(SUFFIXES) and not name.startswith((".", "_")):
                yield Path(parent, name)


def _raise_unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error
