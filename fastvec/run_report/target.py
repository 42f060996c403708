"""Where a report is written: a local file that does not exist, or is an earlier report."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from fastvec import __version__
from fastvec.errors import OutputError, RefusedError, UsageError
from fastvec.stores.address import is_remote
from fastvec.system.durable_files import replacing, translated_os_errors, write_at

GENERATOR = f"fastvec {__version__} run report"
_OWN = re.compile(rb'<meta name="generator" content="fastvec [^"\s]* run report">')
_HEAD_BYTES = 1024  # where `_OWN` stands


def require_reportable(report: str | Path, output: str | Path) -> Path:
    """Return the path of a report on the job that writes `output`.

    Raises UsageError if the name cannot be a report's, or matplotlib is missing; OutputError if the file cannot be
    written; RefusedError if there is a file that is not a report.
    """
    if is_remote(report):
        raise UsageError("--report takes a local file, and was given an address: write it here, then copy it")
    path = Path(report)
    if path.suffix not in (".html", ".htm"):
        raise UsageError(f"--report {path} does not end in .html: name a file, such as {path.stem or 'report'}.html")
    with translated_os_errors(path):
        if not path.parent.is_dir():
            raise OutputError(f"{path.parent} is not a folder: make it first, or choose another --report")
        if not os.access(path.parent, os.W_OK):
            raise OutputError(f"{path.parent} is not writable: choose another --report")
        place, target = Path(os.path.realpath(path.parent)) / path.name, Path(os.path.realpath(output))
        if not is_remote(output) and target in (place, *place.parents):
            raise UsageError(f"--report {path} is the output or in its folder: choose a place beside it")
    require_own(path)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("--report needs the package matplotlib: pip install 'fastvec[report]'") from error
    return path


def require_own(path: Path) -> None:
    """Raise RefusedError if there is a file at `path` that is not a report; OutputError if it cannot be read."""
    with translated_os_errors(path):
        if not os.path.lexists(path):
            return
        if path.is_file():  # opening a pipe would wait for its other end
            with path.open("rb") as file:
                if _OWN.search(file.read(_HEAD_BYTES)):
                    return
    raise RefusedError(f"{path} exists and is not a report of fastvec: delete it, or choose another --report")


def require_no_input(path: Path, inputs: Iterable[Path]) -> None:
    """Raise RefusedError if the report at `path` is one of the files that are read."""
    if path.exists() and any(one.exists() and one.samefile(path) for one in inputs):
        raise RefusedError(f"{path} is an input and would be replaced: choose another --report")


def write_report(path: Path, html: str, output: str) -> None:
    """Write the report on a finished job, over an earlier report.

    Raises OutputError, RefusedError if there is another file by now, or DiskFullError; they say that the `output` is
    finished.
    """
    try:
        require_own(path)
        with translated_os_errors(path), replacing(path) as fd:
            write_at(fd, 0, html.encode("utf-8", "backslashreplace"))
    except OutputError as error:
        raise type(error)(f"{output} is finished, but its report could not be written: {error}") from error
