"""Run checks in another process, so that what crashes or hangs there costs one check, not the report."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from fastvec.doctor.report import Check

# Compiling all kernels for the first time takes the longest.
LIMIT_SECONDS = 240.0
HINTS = {
    "SIGILL": "a library was built for another processor: install one that is built for this one",
    "SIGKILL": "memory may have run out: free some",
}


class _Ended(NamedTuple):
    how: tuple[str, str]  # in words, and what it said last
    finished: list[Check]
    step: str | None  # what it was doing at its end


def run_isolated(targets: Mapping[str, str], *, limit_seconds: float) -> Iterator[Check]:
    """Run the checks `targets` (`module:function` by name), in order, in a process that imports torch once.

    If the process dies or takes longer than the limit, the check that it was at has failed. After a failure, another
    process runs the other checks. If the first check fails, which the others need, they are not run.
    """
    waiting, first = dict(targets), next(iter(targets), None)
    while waiting:
        ended = _run(waiting, limit_seconds)
        found = list(ended.finished)
        if len(found) < len(waiting) and not (found and found[-1].result == "FAILED"):
            name = list(waiting)[len(found)]
            at = "" if ended.step is None else f" at {ended.step}"
            found.append(Check(name=name, result="FAILED", detail=f"the process {ended.how[0]}{at}{ended.how[1]}"))
        yield from found
        for check in found:
            del waiting[check.name]
        if found[0].name == first and found[0].result == "FAILED":
            for name in waiting:
                yield Check(name=name, result="FAILED", detail=f"not run, because {first} failed")
            return


def _run(targets: Mapping[str, str], limit_seconds: float) -> _Ended:
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fastvec.doctor.child", *(f"{name}={there}" for name, there in targets.items())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,  # its own processes, such as a compiler, are killed with it
    )
    how = None
    try:
        try:
            printed, said = process.communicate(timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            how = f"did not end within {limit_seconds:g} s and was killed", ""
            _kill(process)
            printed, said = process.communicate()
    finally:
        if process.poll() is None:  # this process was interrupted
            _kill(process)
    messages = [json.loads(line) for line in printed.splitlines() if line.endswith("}")]
    finished = [Check(**message["check"]) for message in messages if "check" in message]
    step = messages[-1].get("step") if messages else None
    return _Ended(how or _end(process.returncode, said), finished, step)


def _kill(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):  # it has just ended
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def _end(code: int, said: str) -> tuple[str, str]:
    """Return how a process ended, and what it said last or what that may mean."""
    lines = said.strip().splitlines()
    last = f": {lines[-1].strip()[:200]}" if lines else ""
    if code >= 0:
        return f"ended with exit code {code}", last
    name = signal.Signals(-code).name
    return f"was killed by {name}", f"; {HINTS[name]}" if name in HINTS else last or "; please report this"
