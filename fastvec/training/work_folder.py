"""The work folder of an adaptation: `OUT.part`, next to the output and renamed to it when complete.

Therefore the output path never has an incomplete result. `OUT.part` contains the job's fingerprint and checkpoints, so
the same command finds them and resumes. A work folder without a checkpoint or result has nothing to resume from, and
any job may start there: if an option turns out wrong early in a run, the command can be repeated with another value.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastvec.checkpoints.checkpoint import RECORD
from fastvec.errors import OutputError, RefusedError
from fastvec.fingerprint import fingerprint_differences, refuse_another_job
from fastvec.system.durable_files import locked, sync_folder, translated_os_errors, write_durably

JOB, LOCK = "job.json", "lock"
PLACE = "fastvec_place.json"  # written last into a checkpoint


def part_of(output: Path) -> Path:
    return output.with_name(output.name + ".part")


def finished(output: Path, fingerprint: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """Return the results if `output` is this job's finished output; None if there is work to do, as with `overwrite`.

    Raises RefusedError if the output was not made by fastvec, or, without `overwrite`, belongs to another job.
    Raises OutputError if its path is a file or cannot be written to.
    """
    if output.name in ("", ".."):
        raise OutputError(f"{output} has no name of its own: the output is a new folder, give its name with -o")
    if output.is_file() or part_of(output).is_file():
        raise OutputError(f"{output} is a file, but the output is a folder: choose another -o")
    parent = output.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{parent} is not a writable folder: create it, or choose another -o")
    if output.is_dir() and any(output.iterdir()):
        made = _read(output / RECORD)
        if made is None or "fingerprint" not in made:
            raise RefusedError(f"{output} is a folder that fastvec did not make: choose another -o")
        if not overwrite:
            refuse_another_job(output, made["fingerprint"], fingerprint)
            results: dict[str, Any] = made.get("results", {})
            return results
    return None


@contextmanager
def open_work_folder(output: Path, fingerprint: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """Create the work folder, or open it to resume, and lock it against other processes.

    The files of another job are deleted if it has no checkpoint or result, or with `overwrite`; otherwise they raise
    RefusedError. So does a folder that is locked or was not made by fastvec.
    """
    part = part_of(output)
    with translated_os_errors(part):
        part.mkdir(exist_ok=True)
        if {path.name for path in part.iterdir()} - {LOCK, f"{JOB}.tmp"} and not (part / JOB).exists():
            raise RefusedError(f"{part} is a folder that fastvec did not make: move it, or choose another -o")
        with locked(part / LOCK):
            begun = _read(part / JOB)
            if begun is not None and fingerprint_differences(begun, fingerprint):
                if _holds_work(part) and not overwrite:
                    refuse_another_job(part, begun, fingerprint)
                _empty(part)
                begun = None
            if begun is None:
                write_durably(part / JOB, json.dumps(fingerprint))
            yield part


def whole_results(output: Path) -> dict[str, Any] | None:
    """Return the results of a run that saved everything but was killed before the rename; otherwise None."""
    record = _read(part_of(output) / RECORD)
    return None if record is None else record.get("results")


def publish(output: Path) -> None:
    """Delete the checkpoints and rename the work folder to `output`; an existing output is deleted only afterwards."""
    part = part_of(output)
    with translated_os_errors(output):
        for checkpoint in part.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        if output.exists():
            if _replaced(output).exists():  # a run was killed while deleting it
                shutil.rmtree(_replaced(output))
            os.rename(output, _replaced(output))
        os.rename(part, output)
        sync_folder(output.absolute().parent)
    tidy(output)


def tidy(output: Path) -> None:
    """Delete the files that only an unfinished run needs, and the replaced output; a killed run may have left them."""
    with translated_os_errors(output):
        for name in (JOB, LOCK):
            (output / name).unlink(missing_ok=True)
        if _replaced(output).exists():
            shutil.rmtree(_replaced(output))


def _replaced(output: Path) -> Path:
    return output.with_name(f".{output.name}.replaced")


def _holds_work(part: Path) -> bool:
    """Return whether the folder has a checkpoint to resume from, or a complete result to publish."""
    return (part / RECORD).exists() or any(part.glob(f"checkpoint-*/{PLACE}"))


def _empty(part: Path) -> None:
    """Delete the files of another job, `job.json` last: without it, fastvec does not accept the folder as its own."""
    for path in (part / RECORD, *part.glob(f"checkpoint-*/{PLACE}")):  # without these, nothing can be resumed
        path.unlink(missing_ok=True)
    for path in sorted(part.iterdir(), key=lambda path: path.name == JOB):
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
