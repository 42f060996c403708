"""Damages files of an output between two runs."""

import os
import random
from collections.abc import Callable
from pathlib import Path

from benchmarks.faulting.trial import Trial

YEAR = 365 * 86_400


def _flip(path: Path, draw: random.Random) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, draw: random.Random) -> None:
    """Lose the tail."""
    os.truncate(path, draw.randrange(path.stat().st_size))


def _zeros(path: Path, draw: random.Random) -> None:
    """Overwrite the tail with zeros, as a file system that has the length and not the data."""
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))].ljust(len(content), b"\0"))


def _append(path: Path, draw: random.Random) -> None:
    with path.open("ab") as file:
        file.write(draw.choice([b"\0", b"\n", b"x", b"{"]) * draw.randint(1, 100))


def _delete(path: Path, draw: random.Random) -> None:
    path.unlink()


DAMAGES: dict[Callable[[Path, random.Random], None], int] = {_flip: 6, _cut: 3, _zeros: 2, _append: 1, _delete: 1}


def damageable(trial: Trial) -> list[Path]:
    """Return the files that are protected by a checksum and not empty.

    Those are all but the list of row errors beside a file, and receipts when the manifest is there.
    """
    output = trial.job.output
    is_finished = (output / trial.job.final).exists()
    found = []
    for path in sorted(output.rglob("*")):
        in_receipts = "_receipts" in path.parts
        if path.is_file() and path.stat().st_size and not (is_finished and in_receipts):
            own = path.relative_to(output).as_posix()
            if own == "vecs/_errors.jsonl" or "errors.jsonl" not in own:
                found.append(path)
    return found


def damage(trial: Trial) -> None:
    """Damage one file, and run the command on it."""
    path = trial.draw.choice(damageable(trial))
    (how,) = trial.draw.choices(list(DAMAGES), list(DAMAGES.values()))
    before = path.read_bytes()
    how(path, trial.draw)
    if path.exists() and path.read_bytes() == before:
        return
    name = path.relative_to(trial.job.output).as_posix()
    trial.history.append(f"{how.__name__.removeprefix('_')} {name}")
    if name in trial.expected.files or "_receipts" in name:
        trial.tainted.add(_without_id(name))
    trial.damaged = True
    trial.disturb("damaged file", {1, 4})


def _without_id(name: str) -> str:
    parts = name.split("/")
    return "/".join("ID" if len(part) == 16 and "." not in part else part for part in parts)


def change_times(trial: Trial) -> None:
    """Set the modification times of the output's files to the past or the future."""
    offset = trial.draw.choice([-50 * YEAR, -3600, 3600, 50 * YEAR])
    for path in trial.job.output.rglob("*"):
        now = path.stat().st_mtime
        os.utime(path, (max(now + offset, 0), max(now + offset, 0)))
    trial.disturb("modification times", ())
