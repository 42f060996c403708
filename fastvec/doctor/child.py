"""The process that `isolated` starts: it runs the checks that its arguments name, and prints a line of JSON for each.

Before a check is done, lines may say at which step it is. The first check that fails is the last.
"""

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from fastvec.doctor.diagnosis import checked


def main() -> None:
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print

    def send(**message: Any) -> None:
        print(json.dumps(message), file=messages, flush=True)

    def step(name: str) -> None:
        send(step=name)

    for argument in sys.argv[1:]:
        name, _, target = argument.partition("=")
        check = checked(name, target, step)
        send(check=asdict(check))
        if check.result == "FAILED":  # a GPU may be unusable in this process from now on; another one does the rest
            break
    sys.stderr.flush()
    os._exit(0)  # tearing down torch takes up to 0.4 s


if __name__ == "__main__":
    main()
