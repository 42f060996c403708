"""Makes local files of inputs that are none: stdin, tables, and datasets of the Hugging Face hub.

Rows are counted before the model is loaded, and read again when a run resumes, which takes a file. Stdin and tables are
copied to a file beside the output while a job runs; each process that writes shards has its own. It is known by the
hash of its content, so the same command with the same input resumes an unfinished output. Datasets are downloaded into
the hub's cache, and known by their commit.
"""

import os
import re
import select
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from glob import escape
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote
from uuid import uuid4

import pyarrow as pa
from pyarrow import dataset, ipc

from fastvec.corpus.formats.lines import COMPRESSED_SUFFIXES
from fastvec.corpus.locations import KINDS, expanded
from fastvec.errors import InputError, RefusedError, UsageError, one_line
from fastvec.output.ownership import beside
from fastvec.system.durable_files import make_folder, open_locked, translated_os_errors
from fastvec.system.hub import HubError, snapshot
from fastvec.system.stop_signals import require_no_signal

STDIN, HUB = "-", "hf://datasets/"
READ_BYTES = 1 << 20
HASH_BYTES = 16
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
                name = STDIN if isinstance(one, str | Path) else type(one).__name__
                with translated_os_errors(output):
                    path, file = copies.enter_context(_empty_file(output, f".input{number}"))
                    version = _copy_stdin(file, stop_signal) if name == STDIN else _copy_table(one, file)
                found.append(LocalCopy(path, name, version))
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
    ends = ("", *COMPRESSED_SUFFIXES)
    wanted = [inside, f"{inside}/*"] if inside else [f"*{suffix}{end}" for suffix in KINDS for end in ends]
    try:
        folder = snapshot(repository, kind="dataset", revision=revision, wanted=wanted)
    except HubError as error:
        raise InputError(f"{url}: {error}") from None
    try:
        files = expanded(str(folder / inside))
    except InputError:
        raise InputError(f"{url}: the dataset has no data file there; look at its files on the hub") from None
    except UsageError as error:
        raise UsageError(str(error).replace(str(folder / inside), url)) from None
    for file in files:
        name = f"{HUB}{repository}@{folder.name}/{file.relative_to(folder).as_posix()}"
        yield LocalCopy(file, name, folder.name)


@contextmanager
def _empty_file(output: Path, suffix: str) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield an empty file beside `output`, with its path. It is locked in this block and deleted at its end."""
    make_folder(output.parent)  # that of an output in a store is not made yet
    path = beside(output, suffix)
    if output.suffix in (".arrow", ".parquet"):
        fd = open_locked(path)
    else:
        fd, path = _open_own(path)
    with os.fdopen(fd, "r+b") as file:
        file.truncate()
        try:
            yield path, file
        finally:
            if sys.platform == "win32":  # which deletes no open file
                file.close()
            with suppress(OSError):
                path.unlink()


def _open_own(path: Path) -> tuple[int, Path]:
    """Open a locked file with a name of its own, which begins with `path`; several processes write shards at a time.

    Those that killed processes of this machine left are deleted, unless the file system has no locks, by which they are
    known.
    """
    prefix = f"{path.name}.{socket.gethostname()}."  # not all file systems show the locks of another machine
    while True:
        own = path.with_name(f"{prefix}{uuid4().hex}")
        with suppress(RefusedError):  # another process tries just now whether this file was left
            fd = open_locked(own)
            break
    try:
        os.close(open_locked(own, create=False))
    except RefusedError:
        for other in path.parent.glob(f"{escape(prefix)}{'?' * 32}"):
            with suppress(RefusedError, FileNotFoundError):
                left = open_locked(other, create=False)
                other.unlink()
                os.close(left)
    return fd, own


def _copy_stdin(file: BinaryIO, stop_signal: Callable[[], int | None]) -> str:
    """Copy stdin up to its end; returns the hash of the content."""
    if sys.stdin is None:
        raise UsageError("the input is - (stdin), but stdin is closed")
    stdin, content = sys.stdin.fileno(), blake2b(digest_size=HASH_BYTES)
    while True:
        while sys.platform != "win32" and not select.select([stdin], [], [], POLL_SECONDS)[0]:
            require_no_signal(stop_signal, "stdin was read: nothing was written")
        block = os.read(stdin, READ_BYTES)
        if not block:
            break
        content.update(block)
        file.write(block)
    file.flush()
    return content.hexdigest()


def _copy_table(table: Any, file: Any) -> str:
    """Copy a table of pyarrow, polars, pandas, DuckDB or `datasets` as an Arrow stream; returns the hash of that."""
    schema, batches = _read(table)
    with ipc.new_stream(file, schema) as stream:
        for batch in batches:
            stream.write(batch)
    file.flush()
    file.seek(0)
    return file_digest(file, partial(blake2b, digest_size=HASH_BYTES)).hexdigest()


def _read(table: Any) -> tuple[pa.Schema, Iterator[pa.RecordBatch | pa.Table]]:
    """Return the schema and the batches of a table. Raises UsageError for anything else."""
    name = type(table).__name__
    try:
        if isinstance(table, dataset.Dataset):
            return table.schema, _checked(table.to_batches(), name)
        if hasattr(table, "__arrow_c_stream__"):
            reader = pa.RecordBatchReader.from_stream(table)
            return reader.schema, _checked(reader, name)
        if hasattr(table, "with_format") and hasattr(table, "features"):  # datasets.Dataset
            batches = table.with_format("arrow").iter(batch_size=TABLE_ROWS)
            return table.features.arrow_schema, _checked(batches, name)
    except pa.ArrowException as error:  # a column also has __arrow_c_stream__
        raise UsageError(f"an input is a {name} that is no table ({one_line(error)})") from error
    raise UsageError(f"an input is a {name}: expected a path, a table or a dataset")


def _checked(batches: Iterable[pa.RecordBatch], name: str) -> Iterator[pa.RecordBatch]:
    """Yield `batches`, with what reading them raises as an error of the input, not of the file that is written."""
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{name}: cannot be read: {one_line(error)}") from error
        yield batch
