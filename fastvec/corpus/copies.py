"""Makes local files of inputs that are none: stdin, tables, and datasets of the Hugging Face hub.

Rows are counted before the model is loaded, and read again when a run resumes, which takes a file. Stdin and tables are
copied to a file beside the output while a job runs. It is known by the hash of its content, so the same command with
the same input resumes an unfinished output. Datasets are downloaded into the hub's cache, and known by their commit.
"""

import hashlib
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import dataset, ipc

from fastvec.corpus.locations import COMPRESSED, KINDS, find_files
from fastvec.errors import InputError, InterruptedRunError, UsageError
from fastvec.output.ownership import beside
from fastvec.system.durable_files import locked, translated_os_errors
from fastvec.system.hub import HubError, snapshot

STDIN, HUB = "-", "hf://datasets/"
READ_BYTES = 1 << 20
POLL_SECONDS = 0.2  # how often a wait for stdin looks for a signal
TABLE_ROWS = 1024  # of a `datasets.Dataset`, converted at a time


@dataclass(frozen=True, slots=True)
class LocalCopy:
    """A local file with the content of an input.

    `name` stands for it in the output's metadata and in errors; `version` is the hash of its content or its commit.
    """

    path: Path
    name: str
    version: str


@contextmanager
def local_inputs(
    inputs: Any, output: Path, stop_signal: Callable[[], int | None]
) -> Iterator[list[str | Path | LocalCopy]]:
    """Make local files of those of `inputs` that are none, for the time of this block; copies are beside `output`.

    These are `-`, which is stdin; `hf://datasets/org/name`; and tables: what has `__arrow_c_stream__` (of pyarrow,
    polars, pandas, DuckDB), a `pyarrow.dataset.Dataset` and a `datasets.Dataset`.

    Raises UsageError for any other type, and if stdin is given twice; InputError if a dataset cannot be downloaded;
    RefusedError if another run copies to the same file; InterruptedRunError once `stop_signal` returns a signal;
    DiskFullError or OutputError.
    """
    given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    if [str(one) for one in given if isinstance(one, str | Path)].count(STDIN) > 1:
        raise UsageError("the input - (stdin) is given twice; give it once")
    found: list[str | Path | LocalCopy] = []
    with ExitStack() as copies:
        for number, one in enumerate(given):
            if isinstance(one, str) and one.startswith(HUB):
                found += _of_hub(one)
            elif isinstance(one, str | Path) and str(one) != STDIN:
                found.append(one)
            else:
                path = beside(output, f".input{number}")
                with translated_os_errors(output):
                    copies.enter_context(locked(path))
                    copies.callback(path.unlink)
                    if isinstance(one, str | Path):
                        found.append(LocalCopy(path, STDIN, _copied(_stdin_blocks(stop_signal), path)))
                    else:
                        _write_table(one, path)
                        found.append(LocalCopy(path, type(one).__name__, _hash(path)))
        try:
            yield found
        except InputError as error:  # the path of a copy would mean nothing to the user
            message = str(error)
            for copy in found:
                if isinstance(copy, LocalCopy):
                    message = message.replace(str(copy.path), "stdin" if copy.name == STDIN else copy.name)
            raise InputError(message) from error


def _of_hub(url: str) -> Iterator[LocalCopy]:
    """Download the files of `hf://datasets/org/name[@revision][/file, folder or pattern]`."""
    match = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?", url)
    if match is None:
        raise InputError(f"{url}: expected hf://datasets/org/name, with or without @revision and /file-or-pattern")
    repository, revision, inside = match.groups()
    revision = revision and unquote(revision)  # a slash in a branch's name is written %2F
    inside = (inside or "").rstrip("/")
    wanted = [inside, f"{inside}/*"] if inside else [f"*{suffix}{end}" for suffix in KINDS for end in COMPRESSED]
    try:
        folder = snapshot(repository, kind="dataset", revision=revision, wanted=wanted)
    except HubError as error:
        raise InputError(f"{url}: {error}") from None
    try:
        files = find_files(folder / inside)
    except InputError:
        raise InputError(f"{url}: the dataset has no data file there; look at its files on the hub") from None
    except UsageError as error:
        raise UsageError(str(error).replace(str(folder / inside), url)) from None
    for file in files:
        name = f"{HUB}{repository}@{folder.name}/{file.relative_to(folder).as_posix()}"
        yield LocalCopy(file, name, folder.name)


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
