"""The stages of a visit to a GPU: how they are run, limited, chosen and reported."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest
import torch

from benchmarks.gpu import SECONDS, Outcome, chosen, run_stage, summary
from benchmarks.ops.measurement import WORKLOAD_BUILDERS
from benchmarks.reporting.results import append_row
from benchmarks.visit import Command, Stage, stages
from fastvec_kernels import OPS
from tests import ROOT


def stage(tmp_path: Path, *programs: str, side_by_side: bool = False, decides: str | None = None) -> Stage:
    """Return a stage whose commands run these programs."""
    commands = []
    for number, program in enumerate(programs):
        (tmp_path / f"part{number}.py").write_text(program)
        commands.append(Command(words=(f"part{number}",), decides=decides))
    return Stage(name="one", call=1, seconds=9, commands=tuple(commands), side_by_side=side_by_side)


def run(found: Stage, tmp_path: Path, seconds: float = 30) -> Outcome:
    return run_stage(found, seconds, tmp_path, {"PYTHONPATH": str(tmp_path)})


def test_a_stage_runs_its_commands_in_order_and_keeps_what_they_print(tmp_path: Path) -> None:
    first = f"open({str(tmp_path / 'made')!r}, 'w'); print('first')"
    outcome = run(stage(tmp_path, first, f"open({str(tmp_path / 'made')!r}); print('second')"), tmp_path)
    assert outcome.passed
    assert outcome.printed.index("first\n```") < outcome.printed.index("second\n```")


def test_commands_side_by_side_run_at_the_same_time(tmp_path: Path) -> None:
    """Each program waits for the other's file."""

    def meet(own: str, other: str) -> str:
        make = f"pathlib.Path({str(tmp_path / own)!r}).touch()"
        wait = f"while not pathlib.Path({str(tmp_path / other)!r}).exists(): time.sleep(0.01)"
        return f"import pathlib, time\n{make}\n{wait}"

    assert run(stage(tmp_path, meet("a", "b"), meet("b", "a"), side_by_side=True), tmp_path).passed


def test_a_failure_names_its_command_and_the_op_that_is_replaced(tmp_path: Path) -> None:
    wrong = "print('a shape fastvec forward FAILED: other numbers'); raise SystemExit(3)"
    outcome = run(stage(tmp_path, wrong, "print('the next one ran')", decides="rope"), tmp_path)
    assert outcome.status == "FAILED: part0 exit code 3"
    assert "the next one ran" in outcome.printed
    assert outcome.torch_ops == {"rope"}
    assert not outcome.passed


@pytest.mark.parametrize(
    ("program", "seconds", "wrong"),
    [
        ("import no_such_module", 60, False),
        ("import os; os.abort()", 60, True),
        ("import time; time.sleep(60)", 1, True),  # hangs in the first row
        ("print('a shape fastvec forward ok', flush=True); import time; time.sleep(60)", 3, False),  # is slow
    ],
)
def test_only_a_wrong_or_hanging_kernel_is_replaced(tmp_path: Path, program: str, seconds: int, wrong: bool) -> None:
    outcome = run(stage(tmp_path, program, decides="rope"), tmp_path, seconds=seconds)
    assert not outcome.passed
    assert outcome.torch_ops == ({"rope"} if wrong else set())


def test_a_stage_ends_with_its_time_and_kills_children_too(tmp_path: Path) -> None:
    child = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    outcome = run(stage(tmp_path, child, "pass"), tmp_path, seconds=1)
    assert outcome.status == "FAILED: part0 stopped by the time limit; part1 not started: no time left"
    assert outcome.seconds < 20


def test_a_program_that_is_not_installed_fails_alone(tmp_path: Path) -> None:
    missing = Stage(name="one", call=2, seconds=9, commands=(Command(words=("this",), under=("no-such-program",)),))
    outcome = run(missing, tmp_path)
    assert outcome.status == "FAILED: no-such-program this exit code 1"
    assert "no-such-program is not installed" in outcome.printed


def all_stages(tmp_path: Path, *, smoke: bool = False) -> list[Stage]:
    return stages(tmp_path / "results.jsonl", tmp_path, Path("rows.parquet"), smoke=smoke)


@pytest.mark.parametrize("smoke", [False, True])
def test_every_command_and_its_options_exist(tmp_path: Path, smoke: bool) -> None:
    for found in stages(tmp_path / "results.jsonl", tmp_path, ROOT / "tests/data/articles.parquet", smoke=smoke):
        for command in found.commands:
            module, *words = command.words
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
            if module not in ("pytest", "benchmarks.engines.models"):
                import_module(module).main.make_context(module, words)


def test_the_check_decides_about_every_op_before_anything_is_timed(tmp_path: Path) -> None:
    found = all_stages(tmp_path)
    assert [one.name for one in found if one.call == 1][:3] == ["ceilings", "right", "forward"]
    decided = {command.decides for command in found[1].commands} - {None}
    assert decided == set(OPS) - {"dropout"}  # which only training uses
    measured = {word for one in found for command in one.commands for word in command.words}
    assert measured >= WORKLOAD_BUILDERS.keys() - {"dropout"}


def test_both_calls_fit_into_fifteen_minutes_with_two_for_the_machines_start(tmp_path: Path) -> None:
    assert sum(SECONDS.values()) <= 13 * 60
    for call, seconds in SECONDS.items():
        assert sum(one.seconds for one in all_stages(tmp_path) if one.call == call) <= seconds


def test_stages_are_chosen_by_call_name_and_earlier_results(tmp_path: Path) -> None:
    found = all_stages(tmp_path)
    names = [one.name for one in found]

    def pick(call: int = 1, *only: str, first: str | None = None, known: Path | None = None) -> list[str]:
        return [one.name for one in chosen(found, call, only, first, known)]

    assert pick(1) + pick(2) == names
    assert pick(1, "adapt") == ["adapt"]
    assert pick(1, first="attention") == names[names.index("attention") :]
    for name, status in (("ceilings", "passed"), ("right", "FAILED: one")):
        append_row(tmp_path / "results.jsonl", {"benchmark": "stage", "stage": name, "status": status, "torch_ops": []})
    assert pick(1, known=tmp_path)[0] == "right"
    with pytest.raises(click.UsageError, match="there is no stage atention: choose from ceilings, right"):
        pick(1, "atention")


def test_the_summary_says_how_each_stage_ended_and_what_was_replaced() -> None:
    outcome = Outcome(stage="right", status="FAILED: one", seconds=12.3, printed="`one`\n\n```\nrows\n```\n")
    page = summary([outcome], {"rope"})
    assert "- right: FAILED: one, 12 s" in page
    assert "On PyTorch's operations, because their check failed: rope" in page
    assert "## right\n\n`one`\n\n```\nrows\n```" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the stages")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "torch finds no GPU: run this on a machine with one, or with --smoke to test the stages" in done.stderr


@pytest.mark.slow
def test_the_smoke_test_runs_every_stage(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", str(tmp_path), "--smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + (tmp_path / "summary.md").read_text()
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    expected = [one.name for one in all_stages(tmp_path, smoke=True)]
    assert [row["stage"] for row in rows if row["benchmark"] == "stage"] == expected
    assert {row["benchmark"] for row in rows} >= {"ceilings", "exactness", "kernels", "forward", "embed", "recovery"}
