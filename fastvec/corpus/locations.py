"""Expands the given files, folders and glob patterns into the ordered list of a corpus's files."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from glob import escape, glob
from pathlib import Path

from fastvec.corpus.formats.lines import COMPRESSED_SUFFIXES, plain_suffix
from fastvec.errors import InputError, UsageError
from fastvec.output.ownership import ERRORS_SUFFIX, files_of_run

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
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def find_files(
    inputs: Sequence[str | Path] | str | Path, *, output: Path | None = None, copies: Collection[Path] = ()
) -> list[Path]:
    """Return the files of `inputs`, one or several paths, folders or patterns, in the order given.

    Folders are searched recursively. The files of a folder or pattern are sorted.
    Raises InputError for an input that does not exist, cannot be read or yields no file, and UsageError if there is no
    input, a file would be read twice, or `output` is an input or inside an input folder. The paths `copies`
    may be the same file: the hub's cache has equal ones once.
    """
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    if not given:
        raise UsageError("no input was given: name a file, a folder or a pattern")
    found = [file for one in given for file in expanded(str(one), output)]
    seen: dict[str, Path] = {}
    for file in found:
        real = os.path.realpath(file)  # unlike Path.resolve, it does not raise for a symlink loop
        if real in seen and file not in copies:
            raise UsageError(f"{file} is the same file as the input {seen[real]}; give it once")
        if output is not None and real == os.path.realpath(output):
            raise UsageError(f"{file} is both an input and the output; choose another output")
        seen[real] = file
    return found


def expanded(given: str, output: Path | None = None) -> list[Path]:
    """Return the files of one input; raises as `find_files` does, but not for a file that is there twice."""
    if scheme := SCHEME.match(given):  # the message repeats only the scheme: a URL may contain a password
        raise InputError(
            f"{scheme[1]}:// URLs are not supported: give local paths; fastvec embed also takes hf://datasets/org/name"
        )
    try:
        exists = bool(given) and Path(given).exists()
    except OSError as error:
        raise InputError(f"{given}: cannot be read: {error.strerror}") from error
    if exists:
        if files := _expanded(Path(given), output):
            return files
        raise InputError(f"{given}: the folder contains no data file; it is searched for {_WANTED}")
    if not any(character in given for character in "*?["):
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
    if len(kinds := Counter(_kind(file.name) for file in files)) > 1:
        found = " and ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        raise UsageError(f"{path}: the folder contains {found} files; give a pattern, such as '{path}/**/*.parquet'")
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
            kind = _kind(name)
            if kind and not name.startswith((".", "_")) and not name.endswith(ERRORS_SUFFIX):
                yield Path(parent, name)
            elif (kind or name.lower().endswith(_OTHER_SUFFIXES)) and not name.endswith(ERRORS_SUFFIX):
                left_out.append(Path(parent, name))


def _kind(name: str) -> str:
    """Return the kind of data file by its name; empty for all other files."""
    kind = KINDS.get(plain_suffix(Path(name)), "")
    return "" if kind == KINDS[".parquet"] and name.lower().endswith(COMPRESSED_SUFFIXES) else kind


def _raise_unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error
