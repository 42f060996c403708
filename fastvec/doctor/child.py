"""The process that `isolated` starts: it runs the checks that its arguments name, and prints a line of JSON for each.

Before a check is done, lines may say at which step it is.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from fastvec.doctor.diagnosis import checked
from fastvec.doctor.report import Outcome


def main() -> None:
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print

    def send(**message: Any) -> None:
        print(json.dumps(message), file=messages, flush=True)

    def step(name: str) -> None:
        send(step=name)

    for argument in sys.argv[1:]:
        name, _, target = argument.partition("=")
        check = checked(name, partial(run, target, step))
        send(check={"name": check.name, "result": check.result, "detail": check.detail})
    sys.stderr.flush()
    os._exit(0)  # tearing down torch takes up to 0.4 s


def run(target: str, step: Callable[[str], None]) -> Outcome:
    """Run the check `target`, a `module:function`, which tells `step` what it does."""
    module, _, function = target.partition(":")
    found: Outcome = getattr(import_module(module), function)(step)
    return found


if __name__ == "__main__":
    main()
