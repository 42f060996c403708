"""`fastvec convert`: writes a finished output in another tool's format.

    .parquet   see `parquet_file`
    .npy       the vectors [rows, D] in C order, and beside them `*.rows.npy` with the row number of each
    .lance     a Lance dataset, which LanceDB opens as a table

Each is written under a temporary name and renamed when it is complete and durable, one record batch at a time.
"""

import errno
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fastvec.errors import OutputError, RefusedError, UsageError, one_line
from fastvec.output import parquet_file
from fastvec.output.ownership import crc32_of, errors_path, replacing_errors, require_own_errors, require_writable
from fastvec.output.reader import Array, Output
from fastvec.output.verify import open_intact
from fastvec.stores.address import require_local
from fastvec.system.durable_files import (
    draft_path,
    locked,
    replacing,
    sync_folder,
    sync_tree,
    translated_os_errors,
    write_at,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """The report of a file that was made of finished outputs."""

    output: str
    rows: int
    size_bytes: int
    left_out: int = 0  # rows without a vector, which a .npy file cannot have

    @property
    def return_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        left_out = f"; {self.left_out:,} rows without a vector were left out" if self.left_out else ""
        return f"{self.output}: {self.rows:,} rows, {self.size_bytes / 1e6:,.1f} MB{left_out}"


def convert(
    path: str | Path, output: str | Path, *, vector_column: str | None = None, overwrite: bool = False
) -> Written:
    """Convert the finished output at `path` to the format that the suffix of `output` names.

    `.parquet`: the same columns and metadata, with the row errors beside it. `.npy`: the vectors [rows, D] as they are
    stored, and beside them `*.rows.npy`, their row numbers [rows] as int64; rows without a vector are left out, and of
    several columns of vectors `vector_column` chooses one. `.lance`: a Lance dataset of the same columns, which needs
    the package lancedb.

    Raises UsageError if `vector_column` chooses none; OutputError if `path` is not a finished output or is damaged, or
    `output` cannot be written; RefusedError if `output` exists, unless `overwrite`; DiskFullError. An old `output`
    stays as it was then.
    """
    target = require_local(output)
    if target.suffix not in (".parquet", ".npy", ".lance"):
        raise OutputError(f"{output} ends in none of .parquet, .npy and .lance, the formats that can be written")
    with translated_os_errors(target):
        source = open_intact(require_local(path))
        if target.suffix == ".lance":
            return _to_lance(source, target, overwrite=overwrite)
        require_replaceable(target, overwrite=overwrite)
        if target.suffix == ".npy":
            return _to_npy(source, target, _chosen(source, vector_column), overwrite=overwrite)
        errors = _row_errors(source)
        with replacing(target, around=partial(replacing_errors, target, errors)) as fd:
            parquet_file.write(
                fd, source.schema, source.stored_batches(), source.vector_columns, source.counts, crc32_of(errors)
            )
        return Written(output=str(output), rows=source.rows, size_bytes=target.stat().st_size)


def _row_errors(source: Output) -> bytes:
    """Return the content of the errors file of an output; nothing if the output knows of none."""
    path = errors_path(source.path)
    if source.errors_crc32 is None:
        return b""
    if not path.is_file():
        raise OutputError(f"{path}, which lists the row errors of {source.path.name}, is missing: restore it")
    errors = path.read_bytes()
    if crc32_of(errors) != source.errors_crc32:
        raise OutputError(f"{path} does not match its CRC32 in {source.path.name}: restore it")
    return errors


def require_replaceable(target: Path, *, overwrite: bool) -> None:
    """Raise RefusedError if the file `target` exists, unless `overwrite`; OutputError if it cannot be written."""
    require_writable(target)
    _refuse_existing(target, overwrite=overwrite)
    require_own_errors(target)


def require_replaceable_dataset(target: Path, *, overwrite: bool) -> None:
    """Raise RefusedError if the Lance dataset `target` exists, unless `overwrite`; OutputError for another folder."""
    if not target.is_dir():
        require_writable(target)
    elif not (target / "_versions").is_dir():
        raise OutputError(f"{target} is a folder, but not a Lance dataset: choose another name")
    _refuse_existing(target, overwrite=overwrite)


def _refuse_existing(target: Path, *, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise RefusedError(f"{target} exists: replace it with --overwrite, or choose another name")


def _chosen(source: Output, name: str | None) -> str:
    names = source.vector_columns
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        problem = "a .npy file has one column of vectors" if name is None else f"{name!r} is no column of vectors"
        raise UsageError(f"{problem}: choose {' or '.join(names)} with --vector-column")
    return name


def _to_npy(source: Output, target: Path, name: str, *, overwrite: bool) -> Written:
    numbers = target.with_suffix(".rows.npy")
    require_replaceable(numbers, overwrite=overwrite)
    dtype, width = np.dtype(source.vector_type.value_type.to_pandas_dtype()), source.vector_type.list_size
    rows = 0
    # not through a memory map, in which a full disk would be a signal (SIGBUS), not an error
    with replacing(target) as vectors_fd, replacing(numbers) as numbers_fd:
        vectors_end = _write_header(vectors_fd, (rows, width), dtype)
        numbers_end = _write_header(numbers_fd, (rows,), np.dtype(np.int64))
        for batch in source.batches():
            vectors, valid = source.vectors(batch, name)
            rows += int(valid.sum())
            vectors_end = _append(vectors_fd, vectors_end, vectors[valid])
            numbers_end = _append(numbers_fd, numbers_end, batch.column("row").to_numpy()[valid])
        _write_header(vectors_fd, (rows, width), dtype)  # of the same size: NumPy leaves room for the number of rows
        _write_header(numbers_fd, (rows,), np.dtype(np.int64))
        for fd in (vectors_fd, numbers_fd):
            os.fsync(fd)
        target.unlink(missing_ok=True)  # between the two renames, vectors must not be beside another file's row numbers
        sync_folder(target.parent)
    size = vectors_end + numbers_end
    return Written(output=str(target), rows=rows, size_bytes=size, left_out=source.rows - rows)


def _write_header(fd: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return _append(fd, 0, np.frombuffer(header.getvalue(), np.uint8))


def _append(fd: int, end: int, values: Array) -> int:
    data = np.ascontiguousarray(values)
    write_at(fd, end, data.reshape(-1).view(np.uint8))
    return end + data.nbytes


def _to_lance(source: Output, target: Path, *, overwrite: bool) -> Written:
    with lance_dataset(source, target, overwrite=overwrite):
        pass
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return Written(output=str(target), rows=source.rows, size_bytes=size)


@contextmanager
def lance_dataset(source: Output, target: Path, *, overwrite: bool) -> Iterator[Any]:
    """Yield a table of lancedb with the rows of `source`; after the block it becomes the dataset `target`, durably.

    If the block raises, `target` stays as it is. Raises OutputError, also for an error of lancedb in the block;
    RefusedError if `target` exists, unless `overwrite`; OSError.
    """
    try:
        import lancedb
    except ImportError as error:
        raise OutputError("Lance datasets need the package lancedb: pip install 'fastvec[lance]'") from error
    require_replaceable_dataset(target, overwrite=overwrite)
    draft = draft_path(target)
    draft.mkdir(exist_ok=True)
    with locked(draft / "lock"):
        try:
            _clear(draft)  # of what a killed process left
            with _translated_lance_errors(target):
                reader = pa.RecordBatchReader.from_batches(source.schema, source.batches())
                # "null" keeps null vectors, which are refused otherwise
                yield lancedb.connect(draft).create_table("vectors", reader, on_bad_vectors="null")
            sync_tree(draft)
            if target.exists():  # a folder cannot be renamed over another one
                os.replace(target, draft / "old")
            os.replace(draft / "vectors.lance", target)
            sync_folder(target.parent)
        finally:
            _clear(draft)
            with suppress(OSError):
                os.unlink(draft / "lock")
                os.rmdir(draft)


def _clear(draft: Path) -> None:
    for name in ("vectors.lance", "old"):
        shutil.rmtree(draft / name, ignore_errors=True)


@contextmanager
def _translated_lance_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        if "No space left" in str(error):  # an error of Rust, without a number
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise OutputError(f"{target} cannot be written: {one_line(error)}") from error
