"""Reads a file with every damage of one kind, in a process that may die: `python -m tests.helpers.damaged ...`."""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fuzzing.trial import data_bytes, read_whole
from fastvec.errors import InputError
from tests import ROOT
from tests.helpers.processes import environment

MEMORY = 1 << 30  # that a process may allocate beyond what it has with its imports, whatever a file claims


def read_damaged(path: Path, kind: str, step: int = 1) -> dict[int, dict[str, Any]]:
    """Return, by place, the digest of what was read or the `error`; every `step`-th damage, and none at place -1.

    `kind` is `cut`, at a byte, or `flip`, of a bit. Asserts that the process did not end before it had read them all,
    as it would by any exception but InputError.
    """
    command = [sys.executable, "-m", "tests.helpers.damaged", str(path), kind, str(step)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{path.name}: died after {kind} {outcomes[-1:]}: {done.stderr[-2000:]}"
    return {outcome["place"]: outcome for outcome in outcomes}


def damages(content: bytes, kind: str, step: int) -> Iterator[tuple[int, bytes]]:
    yield -1, content
    if kind == "cut":
        for place in range(0, len(content), step):
            yield place, content[:place]
        return
    for place in range(0, 8 * len(content), step):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        yield place, bytes(changed)


def main(path: Path, kind: str, step: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + MEMORY,) * 2)
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder, path.name)
        for place, content in damages(path.read_bytes(), kind, step):
            damaged.write_bytes(content)
            try:
                outcome = {key: value for key, value in read_whole(damaged, "text", None).items() if key != "status"}
            except InputError as error:
                outcome = {"error": str(error)}
            print(json.dumps({"place": place, **outcome}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
