"""Expands the given files, folders and glob patterns into the ordered list of a corpus's files."""

import fnmatch
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from glob import escape, glob
from pathlib import Path, PurePosixPath

from fastvec.corpus.formats.files import File, for_each
from fastvec.corpus.formats.lines import COMPRESSED_SUFFIXES, plain_suffix
from fastvec.errors import InputError, UsageError
from fastvec.output.ownership import ERRORS_SUFFIX, errors_name, files_of_run
from fastvec.stores.address import Address, is_remote
from fastvec.stores.remote_file import RemoteFile
from fastvec.stores.store import files_below, find

logger = logging.getLogger(__name__)

# Searched for in folders, also compressed, except Parquet and Arrow. Not .txt and .json: folders contain README.txt and
# dataset_info.json. A file given by its path may have any suffix.
KINDS = {
    ".parquet": "Parquet or Arrow",
    ".arrow": "Parquet or Arrow",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".csv": "CSV",
    ".tsv": "TSV",
}
_OTHER_SUFFIXES = (".parq", ".pq", ".feather", ".ipc")  # other tools' suffixes for Parquet and Arrow
_WANTED = "*.parquet, *.arrow, *.jsonl, *.ndjson, *.csv and *.tsv"
_NO_DATA = f"the folder contains no data file; it is searched for {_WANTED}"
_WILDCARDS = "*?["


def find_files(
    inputs: Sequence[str | Path] | str | Path, *, output: Path | Address | None = None, copies: Collection[Path] = ()
) -> list[File]:
    """Return the files of `inputs`, one or several paths, addresses, folders or patterns, in the order given.

    Folders are searched recursively. The files of a folder or pattern are sorted.
    Raises InputError for an input that does not exist, cannot be read or yields no file, and UsageError if there is no
    input, a file would be read twice, or `output` is an input or inside an input folder. The paths `copies`
    may be the same file: the hub's cache has equal ones once.
    """
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    if not given:
        raise UsageError("no input was given: name a file, a folder or a pattern")
    found: list[Path | Address] = []
    for one in given:
        if is_remote(one):
            found += _expanded_address(Address.parse(str(one)), output if isinstance(output, Address) else None)
        else:
            found += expanded(str(one), output if isinstance(output, Path) else None)
    seen: dict[str, Path | Address] = {}
    for file in found:
        real = _real(file)
        if real in seen and file not in copies:
            raise UsageError(f"{file} is the same file as the input {seen[real]}; give it once")
        if output is not None and real == _real(output):
            raise UsageError(f"{file} is both an input and the output; choose another output")
        seen[real] = file
    local = all(isinstance(file, Path) for file in found)
    return for_each(lambda file: file if isinstance(file, Path) else RemoteFile.found(file), found, local=local)


def _real(file: Path | Address) -> str:
    return str(file) if isinstance(file, Address) else os.path.realpath(file)  # Path.resolve raises for a symlink loop


def expanded(given: str, output: Path | None = None) -> list[Path]:
    """Return the files of one input; raises as `find_files` does, but not for a file that is there twice."""
    try:
        exists = bool(given) and Path(given).exists()
    except OSError as error:
        raise InputError(f"{given}: cannot be read: {error.strerror}") from error
    if exists:
        if files := _expanded(Path(given), output):
            return files
        raise InputError(f"{given}: {_NO_DATA}")
    if not any(character in given for character in _WILDCARDS):
        raise InputError(f"{given}: no such file or folder")
    is_of_run = _files_of_run(output)
    paths = sorted(Path(path) for path in glob(given, recursive=True) if not is_of_run(os.path.realpath(path)))
    files = list(dict.fromkeys(file for path in paths for file in _expanded(path, output)))  # ** finds some files twice
    if not files:
        raise InputError(f"{given}: no file matches the pattern")
    return files


def _files_of_run(output: Path | None) -> Callable[[str], bool]:
    """Return what says of a real path whether a run writes it: patterns then find the same inputs when it resumes."""
    if output is None:
        return lambda _: False
    copies = output.parent.glob(f"{escape(output.name)}.input*")  # of stdin, left by a run that was killed
    made = set(map(os.path.realpath, [*files_of_run(output), *copies]))
    shards = os.path.join(os.path.realpath(output), "")
    return lambda path: path in made or path.startswith(shards)


def _expanded(path: Path, output: Path | None) -> list[Path]:
    """Return the sorted files of a folder; any other path is returned as is."""
    if not os.path.isdir(path):
        return [path]
    if output is not None and Path(os.path.realpath(output)).is_relative_to(os.path.realpath(path)):
        raise UsageError(f"{output}: the output is inside the input folder {path}; put it elsewhere")
    left_out: list[Path] = []
    files = sorted(_walk(path, left_out))
    _check_folder(path, files, left_out)
    return files


def _check_folder(path: Path | Address, files: Sequence[Path | Address], left_out: Sequence[Path | Address]) -> None:
    """Raise UsageError if the files of a folder are of several kinds; warn of those that were left out."""
    if len(kinds := Counter(_kind(file.name) for file in files)) > 1:
        found = " and ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        raise UsageError(f"{path}: the folder contains {found} files; give a pattern, such as '{path}/**/*.parquet'")
    if left_out:
        logger.warning(
            "%s: skipped %d files or links, e.g. %s: folders are searched for %s, without names that start with . or _ "
            "and without links to folders; to read one of these, give its path",
            path,
            len(left_out),
            min(map(str, left_out)),
            _WANTED,
        )


def _walk(folder: Path, left_out: list[Path]) -> Iterator[Path]:
    """Yield a folder's data files, without names that begin with a dot or an underscore, as dataset readers do.

    Adds skipped files that look like data, and symlinks to folders, to `left_out`.
    """
    for parent, folders, names in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        left_out += [Path(parent, name) for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in names:
            if (is_data := _is_data(name)) is not None:
                if is_data:
                    yield Path(parent, name)
                else:
                    left_out.append(Path(parent, name))


def _is_data(name: str) -> bool | None:
    """Return whether a file in a folder is read, by its name; None if nobody expects that it is."""
    kind = _kind(name)
    if name.endswith(ERRORS_SUFFIX) or not (kind or name.lower().endswith(_OTHER_SUFFIXES)):
        return None
    return bool(kind) and not name.startswith((".", "_"))


def _kind(name: str) -> str:
    """Return the kind of data file by its name; empty for all other files."""
    kind = KINDS.get(plain_suffix(Path(name)), "")
    return "" if kind == KINDS[".parquet"] and name.lower().endswith(COMPRESSED_SUFFIXES) else kind


def _raise_unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error


def _expanded_address(given: Address, output: Address | None) -> list[Address]:
    """Return the files of a store that an address, of a file or folder, or a pattern stands for."""
    parts = given.path.split("/")
    fixed = next((at for at, part in enumerate(parts) if any(one in part for one in _WILDCARDS)), None)
    if fixed == 0:
        raise UsageError(f"{given}: a pattern needs a bucket before it")
    if fixed is not None:
        return _matching(Address(given.scheme, "/".join(parts[:fixed])), parts[fixed:], given, output)
    try:
        is_folder = find(given).is_folder
    except FileNotFoundError:
        raise InputError(f"{given}: no such file, folder or bucket") from None
    if not is_folder:
        return [given]
    if files := _files_of_folder(given, files_below(given), output):
        return files
    raise InputError(f"{given}: {_NO_DATA}")


def _matching(base: Address, pattern: Sequence[str], given: Address, output: Address | None) -> list[Address]:
    """Return the files that match a pattern below `base`, and those of folders that match it, as `glob` would."""
    try:
        below = files_below(base)
    except FileNotFoundError:
        below = []
    made = [] if output is None else [output, output.with_name(errors_name(output.name))]
    matched: dict[tuple[str, ...], list[Address]] = {}  # a file alone, or the files below a folder
    for file in below:
        parts = tuple(file.path[len(base.path) + 1 :].split("/"))
        if file not in made and _matches(parts, pattern):
            matched[parts] = [file]
        for depth in range(len(parts)):
            if _matches(parts[:depth], pattern):
                matched.setdefault(parts[:depth], []).append(file)
    found: list[Address] = []
    for parts, files in sorted(matched.items(), key=lambda item: item[0]):
        path = "/".join([base.path, *parts])
        found += files if files[0].path == path else _files_of_folder(Address(base.scheme, path), files, output)
    if not found:
        raise InputError(f"{given}: no file matches the pattern")
    return list(dict.fromkeys(found))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path matches a pattern; `**` stands for any number of folders, and no `*` for a leading dot."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if _matches(parts, pattern[1:]):
            return True
        return bool(parts) and not parts[0].startswith(".") and _matches(parts[1:], pattern)
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _files_of_folder(folder: Address, below: Sequence[Address], output: Address | None) -> list[Address]:
    """Return those of the files below a folder that are data, as `_expanded` does."""
    if output is not None and output.is_inside(folder):
        raise UsageError(f"{output}: the output is inside the input folder {folder}; put it elsewhere")
    files: list[Address] = []
    left_out: list[Address] = []
    for file in below:
        inside = PurePosixPath(file.path[len(folder.path) + 1 :])
        hidden = any(part.startswith((".", "_")) for part in inside.parts[:-1])
        if not hidden and (is_data := _is_data(file.name)) is not None:
            (files if is_data else left_out).append(file)
    _check_folder(folder, files, left_out)
    return files
