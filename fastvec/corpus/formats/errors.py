"""Turns the errors of readers into one-line input errors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from fastvec.corpus.formats.files import File
from fastvec.errors import InputError

ENCRYPTED = "encrypted Parquet; write it without encryption"


class EmptyFileError(InputError):
    """A file has nothing that names columns, as writers of many files at once leave them for parts without rows."""

    def __init__(self, path: File, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


@contextmanager
def as_input_errors(path: File, group: int | None = None) -> Iterator[None]:
    """Turn read errors into a one-line InputError that names the file and, if given, the row group."""
    try:
        yield
    except InputError:
        raise
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        MemoryError,
    ) as error:  # ValueError: a column name that is not UTF-8
        place = "" if group is None else f" row group {group}"
        reason = str(error).partition("\n")[0][:200]
        if isinstance(error, MemoryError):
            reason = f"more memory is needed than there is ({reason}): a corrupt file, or a small machine"
        told_by_arrow = not isinstance(error, OSError) or error.errno is None
        if told_by_arrow and re.search("encrypt|decrypt", reason.replace(str(path), ""), re.IGNORECASE):
            raise InputError(f"{path}: {ENCRYPTED}") from error
        raise InputError(f"{path}:{place} cannot be read: {reason}") from error
