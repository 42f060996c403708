"""Checks of broken machines, which `fastvec doctor` runs in a process of their own."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

from fastvec.doctor.report import Outcome

Step = Callable[[str], None]


def sound(_: Step) -> Outcome:
    print("what a library prints is not part of the report")
    return "ok", "sound"


def poisons(_: Step) -> Outcome:
    """Leave the process in a state in which nothing works, as a fault of a GPU does."""
    sys.modules["fastvec.poison"] = sys
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def needs_a_sound_process(_: Step) -> Outcome:
    return ("FAILED", "poisoned") if "fastvec.poison" in sys.modules else ("ok", "sound")


def raises(_: Step) -> Outcome:
    raise ValueError("of two\nlines")


def illegal_instruction(step: Step) -> Outcome:
    step("a product")
    os.kill(os.getpid(), signal.SIGILL)
    return "ok", "not reached"


def crashes(step: Step) -> Outcome:
    step("attention")
    print("terminate called after throwing an instance of 'c10::Error'", file=sys.stderr, flush=True)
    ctypes.string_at(0)
    return "ok", "not reached"


def exits(_: Step) -> Outcome:
    os._exit(7)


def hangs(step: Step) -> Outcome:
    step("rope")
    time.sleep(600)
    return "ok", "not reached"
