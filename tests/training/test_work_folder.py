"""The work folder of an adaptation. A file stands in for the training; only the last two tests train."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastvec.checkpoints.checkpoint import RECORD
from fastvec.errors import InputError, ModelError, RefusedError, UsageError
from fastvec.training.metrics import read_metrics
from fastvec.training.work_folder import (
    JOB,
    LOCK,
    PLACE,
    finished,
    open_work_folder,
    part_of,
    publish,
    tidy,
    whole_results,
)
from tests.training.test_job import adapt

WEIGHTS = "adapter_model.safetensors"
ONE, OTHER = {"lr": 1}, {"lr": 2}
PUBLISH_CALLS = 6  # disk changes: delete a checkpoint, rename twice, delete two files and the replaced folder


class Killed(BaseException):
    pass


def run(
    output: Path, job: dict[str, Any], *, overwrite: bool = False, before_publish: Callable[[], None] = lambda: None
) -> None:
    """Do what `fastvec.training.job.adapt` does, but write a file instead of training."""
    if finished(output, job, overwrite=overwrite) is not None:
        tidy(output)
        return
    with open_work_folder(output, job, overwrite=overwrite) as part:
        if whole_results(output) is None:
            (part / "checkpoint-1").mkdir(exist_ok=True)
            (part / "checkpoint-1" / PLACE).write_text("[]")
            (part / WEIGHTS).write_text("")
            (part / RECORD).write_text(json.dumps({"fingerprint": job, "results": {}}))
        before_publish()
        publish(output)


def kill_at_call(patch: pytest.MonkeyPatch, number: int) -> None:
    """Raise Killed before disk change `number`, or midway in it if it deletes a folder with files."""
    left = iter(range(number))

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def one(*given: Any, **named: Any) -> Any:
            if next(left, None) is None:
                if call is rmtree and (files := [path for path in given[0].iterdir() if path.is_file()]):
                    unlink(files[0])
                raise Killed
            return call(*given, **named)

        return one

    rmtree, unlink = shutil.rmtree, Path.unlink
    patch.setattr(shutil, "rmtree", counted(rmtree))
    patch.setattr(Path, "unlink", counted(unlink))
    patch.setattr(os, "rename", counted(os.rename))


@pytest.mark.parametrize("number", range(PUBLISH_CALLS + 1))
@pytest.mark.parametrize(("stands", "then"), [(False, ONE), (True, ONE), (True, OTHER)])
def test_killed_anywhere_in_publish_a_command_ends_in_one_whole_folder(
    tmp_path: Path, number: int, stands: bool, then: dict[str, Any]
) -> None:
    output = tmp_path / "out"
    if stands:
        run(output, OTHER)
    with pytest.MonkeyPatch.context() as patch:
        try:
            run(output, ONE, overwrite=stands, before_publish=lambda: kill_at_call(patch, number))
        except Killed:
            assert number < PUBLISH_CALLS
    run(output, then, overwrite=stands)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in output.iterdir()} == {RECORD, WEIGHTS}
    assert json.loads((output / RECORD).read_text())["fingerprint"] == then


@pytest.mark.parametrize("number", range(7))
def test_killed_while_another_jobs_work_is_deleted_that_job_begins_anew(tmp_path: Path, number: int) -> None:
    output = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        run(output, ONE, before_publish=lambda: kill_at_call(patch, 0))
    with pytest.MonkeyPatch.context() as patch:
        kill_at_call(patch, number)
        with pytest.raises(Killed):
            run(output, OTHER, overwrite=True)
    run(output, ONE, overwrite=True)
    assert {path.name for path in output.iterdir()} == {RECORD, WEIGHTS}


def test_where_no_run_could_go_on_another_job_begins_anew(tmp_path: Path) -> None:
    output, part = tmp_path / "out", part_of(tmp_path / "out")
    with open_work_folder(output, ONE, overwrite=False):
        (part / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        (part / "checkpoint-2").mkdir()  # killed while it was being written
    with open_work_folder(output, OTHER, overwrite=False):
        assert {path.name for path in part.iterdir()} == {JOB, LOCK}
        (part / "checkpoint-2").mkdir()
        (part / "checkpoint-2" / PLACE).write_text("[]")
    with pytest.raises(RefusedError, match=r"out\.part belongs to another job: lr was 2, now 1; replace it"):
        run(output, ONE)
    run(output, ONE, overwrite=True)
    assert json.loads((output / RECORD).read_text())["fingerprint"] == ONE


@pytest.mark.slow
def test_after_a_refusal_the_remedy_that_it_names_is_taken(tiny_llama: Path, tmp_path: Path) -> None:
    refused: list[dict[str, Any]] = [{"mask_token": "[BLANK]"}, {"batch_size": 10_000}, {"lr": 1e30}]
    for options in refused:
        with pytest.raises((UsageError, InputError, ModelError)):
            adapt(tmp_path / "out", tiny_llama, **options)
    assert adapt(tmp_path / "out", tiny_llama, steps=1, mask_token="_").steps == 1


def test_a_run_that_fails_leaves_no_thread_that_writes(tiny_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    before = set(threading.enumerate())
    with pytest.raises(ModelError):
        adapt(tmp_path / "out", tiny_llama, lr=1e30)
    assert [thread for thread in set(threading.enumerate()) - before if "Writer" in type(thread).__name__] == []


@pytest.mark.slow
def test_a_link_as_output_stays_one(tiny_llama: Path, tmp_path: Path) -> None:
    adapt(tmp_path / "there", tiny_llama, steps=1)
    (tmp_path / "out").symlink_to("there")
    adapt(tmp_path / "out", tiny_llama, steps=2, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "there"]
    assert (tmp_path / "out").is_symlink()
    assert max(row["step"] for row in read_metrics(tmp_path / "there" / "metrics.jsonl")) == 2
