"""Writes a table that was made of vectors, such as hits or groups, to a Parquet, Arrow or JSON lines file."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from fastvec.errors import OutputError
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
    lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table.to_pylist())
    return "".join(lines).encode("utf-8", "backslashreplace")
