"""Expands the given files, folders and glob patterns into the ordered list of a corpus's files."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from fastvec.errors import InputError, UsageError
from fastvec.output.ownership import files_of_run

logger = logging.getLogger(__name__)

SUFFIXES = (".parquet", ".arrow")  # searched for in folders; a file given by its path may have any suffix
_OTHER_SUFFIXES = (".parq", ".pq", ".feather", ".ipc")  # other tools' suffixes for the same formats
_WANTED = " or ".join("*" + suffix for suffix in SUFFIXES)
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def find_files(inputs: Sequence[str | Path] | str | Path, *, output: Path | None = None) -> list[Path]:
    """Return the files of `inputs`, one or several paths, folders or patterns, in the order given.

    Folders are searched recursively. The files of a folder or pattern are sorted.
    Raises InputError for an input that does not exist, cannot be read or yields no file, and UsageError if there is no
    input, a file would be read twice, or `output` is an input or inside an input folder.
    """
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    if not given:
        raise UsageError("no input was given: name a Parquet or Arrow file, a folder or a pattern")
    found = [file for one in given for file in _files(str(one), output)]
    seen: dict[str, Path] = {}
    for file in found:
        real = os.path.realpath(file)  # unlike Path.resolve, it does not raise for a symlink loop
        if real in seen:
            raise UsageError(f"{file} is the same file as the input {seen[real]}; give it once")
        if output is not None and real == os.path.realpath(output):
            raise UsageError(f"{file} is both an input and the output; choose another output")
        seen[real] = file
    return found


def _files(given: str, output: Path | None) -> list[Path]:
    if scheme := SCHEME.match(given):  # the message repeats only the scheme: a URL may contain a password
        raise InputError(f"{scheme[1]}:// URLs are not supported: download the files and give their local paths")
    try:
        exists = bool(given) and Path(given).exists()
    except OSError as error:
        raise InputError(f"{given}: cannot be read: {error.strerror}") from error
    if exists:
        if files := _expanded(Path(given), output):
            return files
        raise InputError(f"{given}: the folder contains no {_WANTED} file")
    if not any(character in given for character in "*?["):
        raise InputError(f"{given}: no such file or folder")
    made = _files_of_run(output)
    paths = sorted(Path(path) for path in glob(given, recursive=True) if os.path.realpath(path) not in made)
    files = list(dict.fromkeys(file for path in paths for file in _expanded(path, output)))  # ** finds some files twice
    if not files:
        raise InputError(f"{given}: no file matches the pattern")
    return files


def _files_of_run(output: Path | None) -> set[str]:
    """Return the files that a run writes. Patterns skip them, so that a resumed command finds the same inputs."""
    if output is None:
        return set()
    return set(map(os.path.realpath, files_of_run(output)))


def _expanded(path: Path, output: Path | None) -> list[Path]:
    """Return the sorted files of a folder; any other path is returned as is."""
    if not os.path.isdir(path):
        return [path]
    if output is not None and Path(os.path.realpath(output)).is_relative_to(os.path.realpath(path)):
        raise UsageError(f"{output}: the output is inside the input folder {path}; put it elsewhere")
    left_out: list[Path] = []
    files = sorted(_walk(path, left_out))
    if left_out:
        logger.warning(
            "%s: skipped %d files or links, e.g. %s: folders are searched for %s, without names that start with . or _ "
            "and without links to folders; to read one of these, give its path",
            path,
            len(left_out),
            min(left_out),
            _WANTED,
        )
    return files


def _walk(folder: Path, left_out: list[Path]) -> Iterator[Path]:
    """Yield a folder's data files, without names that begin with a dot or an underscore, as dataset readers do.

    Adds skipped files that look like data, and symlinks to folders, to `left_out`.
    """
    for parent, folders, names in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        left_out += [Path(parent, name) for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES and not name.startswith((".", "_")):
                yield Path(parent, name)
            elif suffix in SUFFIXES + _OTHER_SUFFIXES:
                left_out.append(Path(parent, name))


def _raise_unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error
