"""Decides which job the files at an output's path belong to, and whether a job may write there.

An output `vecs.arrow` has three companion files: `vecs.arrow.part` and `vecs.arrow.journal` while it is unfinished, and
`vecs.errors.jsonl` if rows failed. For `vecs.parquet`, the latter is `vecs.parquet.errors.jsonl`.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from fastvec.errors import OutputError, RefusedError
from fastvec.fingerprint import REMEDY, Json, fingerprint_differences, refuse_another_job
from fastvec.output.journal import Job, Journal
from fastvec.output.reader import read_metadata
from fastvec.stores.address import Address
from fastvec.system.blocks import NOT_WRITTEN
from fastvec.system.durable_files import draft_path, forget_cached, sync_folder, translated_os_errors, write_file

ERRORS_SUFFIX = ".errors.jsonl"
FIRST_LINE_BYTES = 10_000


def finished_counts(output: Path, job: Job, *, overwrite: bool = False) -> dict[str, int] | None:
    """Return the `rows` and other counts of this job's finished output, or None if there is work to do.

    With `overwrite`, there always is. This is cheap, so that it can run before the model is loaded.
    Raises RefusedError if `output` or its unfinished files belong to another job or are not fastvec's (unless
    `overwrite`), if the journal is locked by a running process, or if it is not a journal that this version reads;
    OutputError if the path is not writable or the journal is damaged.
    """
    with translated_os_errors(output):
        require_writable(output)
        try:
            journal = Journal.open(beside(output, ".journal"), create=False)
        except FileNotFoundError:
            return finished(output, job, None, overwrite=overwrite)
        try:
            counts = finished(output, job, journal, overwrite=overwrite)
            if counts is not None:  # a run was killed after its rename, before it deleted its journal
                discard(journal, beside(output, ".part"))
        finally:
            journal.close()
        return counts


def earlier_fingerprint(output: Path, *, overwrite: bool = False) -> Mapping[str, Json]:
    """Return the fingerprint of the work at `output` that a job may resume, or find finished; empty if there is none.

    Raises what `finished_counts` raises about the path and the journal.
    """
    with translated_os_errors(output):
        require_writable(output)
        with suppress(FileNotFoundError):
            journal = Journal.open(beside(output, ".journal"), create=False)
            journal.close()
            if journal.unfinished is not None:
                return journal.unfinished.fingerprint
        with suppress(FileNotFoundError, RefusedError):
            return {} if overwrite else _published(output)[0]
    return {}


def beside(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)


def errors_path(output: Path) -> Path:
    return output.with_name(errors_name(output.name))


def errors_name(name: str) -> str:
    """Return the name of the errors file of an output of this name."""
    return name.removesuffix(".arrow") + ERRORS_SUFFIX  # both formats may be in one folder


def files_of_run(output: Path) -> tuple[Path, ...]:
    """Return all files that a run writes, and its output."""
    drafts = (beside(output, ".part"), draft_path(output), beside(errors_path(output), ".part"))
    return (output, beside(output, ".journal"), errors_path(output), *drafts)


def discard(journal: Journal, part: Path) -> None:
    """Delete unfinished files without durable chunks, or the journal left behind by a finished run."""
    if journal.job is not None:  # without a header, `part` may not be fastvec's
        journal.drop_failed()
        remove_part(part)
    journal.remove()


def remove_part(part: Path) -> None:
    """Delete `part` durably. Call it before deleting the journal: without that, `part` cannot be identified."""
    if part.exists():
        os.unlink(part)
        sync_folder(part.parent)


def finished(output: Path, job: Job, journal: Journal | None, *, overwrite: bool) -> dict[str, int] | None:
    """Implement `finished_counts`; the caller holds the lock on `journal`, which is None if there is none."""
    if overwrite:
        return None
    part = beside(output, ".part")
    if (journal is None or journal.job is None) and part.exists():
        raise RefusedError(f"{part} has no journal, so its job is unknown; {REMEDY}")
    unfinished = None if journal is None else journal.unfinished
    if unfinished is not None:
        refuse_another(part, unfinished.fingerprint, job)
    if output.exists():
        fingerprint, counts = _published(output)
        refuse_another(output, fingerprint, job)
        if unfinished is None or not part.exists():  # else an interrupted --overwrite of the same job resumes
            return counts
    require_own_errors(output)
    return None


def _published(output: Path) -> tuple[Mapping[str, Json], dict[str, int]]:
    """Read the fingerprint and counts of a finished output; raises RefusedError if it is not one."""
    return promised(output, lambda: read_metadata(output))


def promised(
    output: Path | Address, read: Callable[[], tuple[pa.Schema, Mapping[str, str]]]
) -> tuple[Mapping[str, Json], dict[str, int]]:
    """Return the fingerprint and counts in the metadata that `read` returns; raises RefusedError if it has none."""
    try:
        schema, promises = read()
        counts = {"rows": int(promises["fastvec.rows"]), **json.loads(promises["fastvec.counts"])}
        return json.loads(schema.metadata[b"fastvec.fingerprint"]), counts
    except (KeyError, TypeError, ValueError, RecursionError, OSError, pa.ArrowException) as error:
        if (
            isinstance(error, MemoryError) or getattr(error, "errno", None) is not None
        ):  # not Arrow's, of a damaged file
            raise
        raise RefusedError(f"{output} is not a finished fastvec output; {REMEDY}") from error


def refuse_another(path: Path | Address, begun: Mapping[str, Json], job: Job) -> None:
    rows, asked = begun.get("rows"), job.fingerprint.get("rows")
    only_one = len(fingerprint_differences(begun, job.fingerprint)) == 1
    if only_one and isinstance(rows, int) and isinstance(asked, int) and rows != asked:
        raise RefusedError(
            f"{path} was started for {rows:,} rows of these inputs, but this command asks for {asked:,} (see --limit). "
            f"The row count is stored in the file's header and cannot change; {REMEDY}"
        )
    refuse_another_job(path, begun, job.fingerprint)


def is_errors_file(path: Path) -> bool:
    """Return whether `path` may be written as errors file: it does not exist, or its first line is a row error."""
    if not path.is_file():  # opening a pipe would wait for its other end
        return not path.exists()
    with path.open("rb") as file:
        return is_row_error(file.readline(FIRST_LINE_BYTES))


def is_row_error(line: bytes) -> bool:
    """Return whether the first line of a file is a row error, or the file is empty."""
    try:
        record = json.loads(line or b'{"row": 0}')
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "row" in record


def error_lines(lines: Iterable[str]) -> bytes:
    """Return the content of an errors file with these lines."""
    return "".join(f"{line}\n" for line in lines).encode()


def crc32_of(errors: bytes) -> str | None:
    """Return the CRC32 by which an output knows its errors file; None if there are no errors."""
    return f"{zlib.crc32(errors):08x}" if errors else None


@contextmanager
def replacing_errors(output: Path, errors: bytes, *, read_back: bool = False) -> Iterator[None]:
    """Give an output its errors file, durably, before the block, which renames the output.

    So a finished output has its errors file. If the block raises, an old output has its old one again. Raises OSError,
    and OutputError if it is to be read back, and is not what was written.
    """
    path = errors_path(output)
    old = path.read_bytes() if path.is_file() else b""
    try:
        _write_errors(path, errors, read_back=read_back)
        sync_folder(path.parent)
        yield
    except BaseException:
        with suppress(OSError):
            _write_errors(path, old, read_back=False)
            sync_folder(path.parent)
        raise


def _write_errors(path: Path, errors: bytes, *, read_back: bool) -> None:
    """Write an errors file durably, but for its name; without errors, delete that of an earlier run."""
    temporary = beside(path, ".part")
    if not errors:
        temporary.unlink(missing_ok=True)
        if is_errors_file(path):
            path.unlink(missing_ok=True)
        return
    write_file(temporary, errors)
    if read_back:
        forget_cached(temporary)
        if temporary.read_bytes() != errors:
            raise OutputError(f"{temporary}: {NOT_WRITTEN}; run the same command again, which keeps all rows")
    os.replace(temporary, path)


def require_own_errors(output: Path) -> None:
    """Raise RefusedError if the file that would be the errors file of `output` is something else."""
    if not is_errors_file(errors_path(output)):
        raise RefusedError(f"{errors_path(output)} is not a list of row errors, but would be overwritten; {REMEDY}")


def require_writable(output: Path) -> None:
    folder = output.parent
    if not folder.is_dir():
        raise OutputError(f"{folder} is not a folder: create it, or choose another output")
    if output.is_dir():
        raise OutputError(f"{output} is a folder: name a file in it, such as {output / 'vecs.arrow'}")
    if output.exists() and not output.is_file():
        raise OutputError(f"{output} is not a regular file: choose another output")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} is not writable: choose another output")
