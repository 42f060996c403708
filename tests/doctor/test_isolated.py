"""Checks that crash or hang cost one line of the report, and the others still run."""

import pytest

from fastvec.doctor.isolated import run_isolated
from fastvec.doctor.report import Check

FAULTS = "tests.helpers.doctor"


def found(*names: str, limit_seconds: float = 60.0) -> list[tuple[str, str, str]]:
    targets = {name: f"{FAULTS}:{name}" for name in names}
    checks = list(run_isolated(targets, limit_seconds=limit_seconds))
    assert all(isinstance(check, Check) for check in checks)
    return [(check.name, check.result, check.detail) for check in checks]


def test_checks_that_end_the_process_are_named_and_the_others_run() -> None:
    last = "terminate called after throwing an instance of 'c10::Error'"
    illegal = (
        "the process was killed by SIGILL at a product; "
        "a library was built for another processor: install one that is built for this one"
    )
    assert found("sound", "raises", "crashes", "illegal_instruction", "exits") == [
        ("sound", "ok", "sound"),
        ("raises", "FAILED", "ValueError: of two lines"),
        ("crashes", "FAILED", f"the process was killed by SIGSEGV at attention: {last}"),
        ("illegal_instruction", "FAILED", illegal),
        ("exits", "FAILED", "the process ended with exit code 7"),
    ]


@pytest.mark.slow
def test_a_hung_check_is_killed_and_the_next_one_runs() -> None:
    targets = {"first": f"{FAULTS}:sound", "hung": f"{FAULTS}:hangs", "next": f"{FAULTS}:sound"}
    checks = list(run_isolated(targets, limit_seconds=8.0))
    assert [(check.name, check.result) for check in checks] == [("first", "ok"), ("hung", "FAILED"), ("next", "ok")]
    assert checks[1].detail == "the process did not end within 8 s and was killed at rope"


def test_after_a_failure_another_process_runs_the_rest() -> None:
    assert found("sound", "poisons", "needs_a_sound_process") == [
        ("sound", "ok", "sound"),
        ("poisons", "FAILED", "RuntimeError: CUDA error: an illegal memory access was encountered"),
        ("needs_a_sound_process", "ok", "sound"),
    ]


def test_without_the_first_check_the_others_are_not_run() -> None:
    assert found("exits", "sound", "crashes") == [
        ("exits", "FAILED", "the process ended with exit code 7"),
        ("sound", "FAILED", "not run, because exits failed"),
        ("crashes", "FAILED", "not run, because exits failed"),
    ]


def test_a_module_that_cannot_be_imported_is_one_line() -> None:
    (check,) = run_isolated({"torch": "no_such_module:check"}, limit_seconds=60.0)
    assert (check.result, check.detail) == ("FAILED", "ModuleNotFoundError: No module named 'no_such_module'")
