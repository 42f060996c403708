"""Copies inputs that can be read only once, stdin and Arrow streams, to files beside the output while a job runs.

A file can be read again, and its rows counted before the model is loaded. The copy is known by the hash of its
content, so the same command with the same input resumes an unfinished output.
"""

import hashlib
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import dataset, ipc

from fastvec.errors import InputError, InterruptedRunError, UsageError
from fastvec.output.ownership import beside
from fastvec.system.durable_files import locked, translated_os_errors

STDIN = "-"
READ_BYTES = 1 << 20
POLL_SECONDS = 0.2  # how often a wait for stdin looks for a signal
TABLE_ROWS = 1024  # of a `datasets.Dataset`, converted at a time


@dataclass(frozen=True, slots=True)
class Spooled:
    """A copy of an input. `name` stands for it in the output's metadata, `content_hash` in the job's fingerprint."""

    path: Path
    name: str
    content_hash: str


@contextmanager
def spooled_inputs(
    inputs: Any, output: Path, stop_signal: Callable[[], int | None]
) -> Iterator[list[str | Path | Spooled]]:
    """Copy those of `inputs` that are no paths to files beside `output`, for the time of this block.

    These are `-`, which is stdin, and tables: what has `__arrow_c_stream__` (of pyarrow, polars, pandas, DuckDB), a
    `pyarrow.dataset.Dataset` and a `datasets.Dataset`.

    Raises UsageError for any other type, and if stdin is given twice; RefusedError if another run copies to the same
    file; InterruptedRunError once `stop_signal` returns a signal; DiskFullError or OutputError.
    """
    given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    if [str(one) for one in given if isinstance(one, str | Path)].count(STDIN) > 1:
        raise UsageError("the input - (stdin) is given twice; give it once")
    found: list[str | Path | Spooled] = []
    with ExitStack() as copies:
        for number, one in enumerate(given):
            if isinstance(one, str | Path) and str(one) != STDIN:
                found.append(one)
                continue
            path = beside(output, f".input{number}")
            with translated_os_errors(output):
                copies.enter_context(locked(path))
                copies.callback(path.unlink)
                if isinstance(one, str | Path):
                    found.append(Spooled(path, STDIN, _copied(_stdin_blocks(stop_signal), path)))
                else:
                    _write_table(one, path)
                    found.append(Spooled(path, type(one).__name__, _hash(path)))
        try:
            yield found
        except InputError as error:  # the copy is deleted: its path would mean nothing to the user
            message = str(error)
            for copy in found:
                if isinstance(copy, Spooled):
                    message = message.replace(str(copy.path), "stdin" if copy.name == STDIN else copy.name)
            raise InputError(message) from error


def _copied(blocks: Iterator[bytes], path: Path) -> str:
    with path.open("wb") as file:
        for block in blocks:
            file.write(block)
    return _hash(path)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _stdin_blocks(stop_signal: Callable[[], int | None]) -> Iterator[bytes]:
    stdin = sys.stdin.fileno()
    while True:
        while sys.platform != "win32" and not select.select([stdin], [], [], POLL_SECONDS)[0]:
            if (number := stop_signal()) is not None:
                name = signal.Signals(number).name
                raise InterruptedRunError(f"stopped by {name} while stdin was read: nothing was written", number)
        block = os.read(stdin, READ_BYTES)
        if not block:
            return
        yield block


def _write_table(table: Any, path: Path) -> None:
    batches = _batches(table)
    first = next(batches, None)
    if first is None:
        raise InputError(f"the {type(table).__name__} has no rows, so its columns are not known")
    with ipc.new_stream(path, first.schema) as stream:
        stream.write(first)
        for batch in batches:
            stream.write(batch)


def _batches(table: Any) -> Iterator[pa.RecordBatch | pa.Table]:
    """Yield the rows of a table of pyarrow, polars, pandas, DuckDB or `datasets`."""
    if isinstance(table, dataset.Dataset):
        yield from table.to_batches()
    elif hasattr(table, "__arrow_c_stream__"):
        yield from pa.RecordBatchReader.from_stream(table)
    elif hasattr(table, "with_format") and hasattr(table, "iter"):  # datasets.Dataset
        yield from table.with_format("arrow").iter(batch_size=TABLE_ROWS)
    else:
        raise UsageError(f"an input is a {type(table).__name__}: expected a path, a table or a dataset")
