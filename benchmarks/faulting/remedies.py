"""Does what a message of fastvec tells its user to do."""

import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmarks.faulting.command import Ended, end_orphans

Remedy = Callable[["re.Match[str]"], tuple[str, ...]]  # returns options to add to the next run


def _delete(*groups: int) -> Remedy:
    def delete(found: "re.Match[str]") -> tuple[str, ...]:
        for group in groups:
            with suppress(FileNotFoundError):
                Path(found[group]).unlink()
        return ()

    return delete


def _delete_unfinished(found: "re.Match[str]") -> tuple[str, ...]:
    for suffix in (".journal", ".part"):
        Path(found[1]).with_suffix(suffix).unlink(missing_ok=True)
    return ()


def _delete_folder(found: "re.Match[str]") -> tuple[str, ...]:
    shutil.rmtree(found[1])
    return ()


def _delete_record(found: "re.Match[str]") -> tuple[str, ...]:
    if not Path(found[1], "_manifest.json").exists():
        return _delete_folder(found)
    Path(found[1], "_job.json").unlink()
    return ()


def _wait(found: "re.Match[str]") -> tuple[str, ...]:
    end_orphans()
    return ()


REMEDIES: list[tuple[str, Remedy]] = [
    (r"(\S+\.journal): .*; delete it and \S+\.part, and run the command again", _delete_unfinished),
    (r"(\S+\.part) is .*: delete both files and run the command again", _delete_unfinished),
    (r"(\S+\.part): .*; delete it and \S+\.journal, and run the command again", _delete_unfinished),
    (r"(\S+\.journal) is not a fastvec journal: move it away", _delete(1)),
    (r"(\S+): .*; delete it, and run (?:the command|fastvec embed) again", _delete(1)),
    (r"(\S+) is damaged: delete it, and run (?:the command|fastvec embed) again", _delete(1)),
    (
        r"(\S+)/_job\.json is damaged: delete it if the folder has a _manifest\.json, or else the folder",
        _delete_record,
    ),
    (r"(\S+) has other files, such as \S+: an output in shards needs a folder of its own", _delete_folder),
    (r"replace it with --overwrite|repeat the command with --overwrite", lambda _: ("--overwrite",)),
    (r"is locked by a running process: wait for it", _wait),
    (r"run the (?:same )?command again", _wait),
]


def follow(ended: Ended) -> tuple[str, ...] | None:
    """Do what the error of a run says; returns the options that the next run needs, or None if it says nothing."""
    message = next((line for line in ended.printed.splitlines() if line.startswith("fastvec: ")), "")
    for pattern, remedy in REMEDIES:
        if found := re.search(pattern, message.removeprefix("fastvec: ")):
            return remedy(found)
    return None


def follow_verify(printed: str, target: Path) -> bool:
    """Delete the files that `fastvec verify` found damaged; returns whether there was one."""
    found = False
    for line in printed.splitlines():
        if line.startswith("FAILED"):
            name = line.split()[1]
            path = target / name if target.is_dir() and (target / name).is_file() else target
            if target.is_dir():
                named = re.search(r"(\S+) (?:is damaged|does not match|is missing)", line)
                path = path if path.is_file() else Path(named[1]) if named is not None else path
            found |= path.is_file() or "run the same fastvec embed again" in line
            path.unlink(missing_ok=True)
    return found
