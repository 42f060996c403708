"""Writes a table that was made of vectors, such as hits or groups, to a Parquet, Arrow or JSON lines file."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from fastvec.errors import OutputError, UsageError
from fastvec.output import parquet_file
from fastvec.output.convert import require_replaceable
from fastvec.system.durable_files import replacing, translated_os_errors

SUFFIXES = (".parquet", ".arrow", ".jsonl")


def require_result_file(target: Path, *, overwrite: bool) -> None:
    """Raise OutputError unless `target` can be written in the format of its suffix; RefusedError if it exists."""
    if target.suffix not in SUFFIXES:
        raise OutputError(f"{target} ends in none of {', '.join(SUFFIXES)}, the formats that can be written")
    with translated_os_errors(target):
        require_replaceable(target, overwrite=overwrite)


def require_apart(targets: Sequence[Path], read: Sequence[Path]) -> None:
    """Raise UsageError if a file to write is also another one, or one to read."""
    inputs, paths = {path.resolve() for path in read}, [target.resolve() for target in targets]
    for number, path in enumerate(paths):
        if path in inputs:
            raise UsageError(f"{targets[number]} is a file that is read, or was embedded: choose another name")
        if path in paths[:number]:
            raise UsageError(f"{targets[number]} is given twice: choose another name for the result")


@contextmanager
def result_file(target: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], object]]:
    """Yield a function that appends tables of `schema` to the file `target`, which appears whole or not at all.

    It replaces an existing file when the block ends. Raises OutputError, also for a type that Parquet does not have, or
    DiskFullError.
    """
    with translated_os_errors(target), replacing(target) as fd, ExitStack() as opened:
        file = opened.enter_context(os.fdopen(os.dup(fd), "wb"))
        if target.suffix == ".jsonl":
            yield lambda table: file.write(_lines(table))
        elif target.suffix == ".arrow":
            yield opened.enter_context(ipc.new_file(file, schema)).write_table
        else:
            parquet_file.require_storable(schema)
            yield opened.enter_context(pq.ParquetWriter(file, schema, compression="zstd")).write_table


def _lines(table: pa.Table) -> bytes:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in json_rows(table))
    return "".join(lines).encode("utf-8", "backslashreplace")


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows with values of JSON: dates and times as texts, NaN as null, what JSON does not have as a text."""
    columns = [_plain(column) for column in table.columns]
    rows = pa.table(columns, names=table.schema.names).to_pylist()
    # the constants are NaN and the infinities
    found: list[dict[str, Any]] = json.loads(json.dumps(rows, default=str), parse_constant=lambda _: None)
    return found


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_temporal(column.type):  # nanoseconds become no value of Python's
        return column.cast(pa.string())
    if pa.types.is_floating(column.type):
        wide = column.cast(pa.float64()) if pa.types.is_float16(column.type) else column
        return pc.if_else(pc.is_finite(wide), wide, pa.scalar(None, wide.type))
    return column
