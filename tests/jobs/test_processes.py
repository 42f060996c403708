"""Shards embedded by several processes: whatever happens to them, the output is that of one process."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastvec import Encoder, embed
from fastvec.embedding.options import EmbedOptions
from fastvec.embedding.plan import plan_embed
from fastvec.errors import InterruptedRunError, ModelError, WorkerError
from fastvec.jobs.processes import TRIES, in_processes
from fastvec.jobs.progress import JobProgress
from fastvec.jobs.sharded import Schedule, ShardedJob, embed_shards
from fastvec.report import Progress, Report
from fastvec.shards.folder import LocalFolder
from tests.helpers.processes import environment
from tests.helpers.workers import dying, failing

if sys.platform == "win32":
    pytest.skip("needs signals", allow_module_level=True)

ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def expected(articles: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected") / "vecs"
    embed([articles], f"{folder}/", encoder=encoder, column="text", shard_rows=60)
    return parts_of(folder)


def parts_of(folder: Path) -> dict[str, bytes]:
    names = [*folder.glob("part-*"), folder / "_manifest.json"]
    return {path.name: path.read_bytes() for path in names}


def run(articles: Path, encoder: Encoder, folder: Path, schedule: Schedule, progress: Any = lambda _: None) -> Report:
    plan = plan_embed([articles], f"{folder}/", settings=encoder.settings, options=EmbedOptions(column="text"))
    return embed_shards(
        plan,
        LocalFolder(folder),
        schedule,
        part=None,
        shard_rows=60,
        batch_tokens=None,
        overwrite=False,
        progress=progress,
        stop_signal=lambda: None,
    )


def test_two_processes_write_the_bytes_of_one(
    articles: Path, encoder: Encoder, folder: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the number of threads decides how sums round
    seen: list[Progress] = []
    report = embed(
        [articles],
        f"{folder}/",
        encoder=encoder.settings,
        column="text",
        devices="cpu:2",
        shard_rows=60,
        progress=seen.append,
    )
    assert (report.rows, report.shards, seen[-1].rows, seen[-1].new_rows) == (300, 5, 300, 300)
    assert parts_of(folder) == expected


def test_the_shard_of_a_process_that_dies_is_done_again(
    articles: Path,
    encoder: Encoder,
    folder: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    schedule = in_processes([ONE_THREAD], dying(tmp_path / "death", TRIES - 1))
    assert run(articles, encoder, folder, schedule).rows == 300
    warning = "a worker process was killed by SIGKILL at part-00000.arrow; another one takes its place"
    assert caplog.messages == [warning] * (TRIES - 1)
    assert parts_of(folder) == expected


@pytest.mark.parametrize(
    ("at_load", "message"),
    [
        (True, f"a worker process was killed by SIGKILL before it had a shard, {TRIES} times"),
        (False, f"a worker process was killed by SIGKILL at part-00000.arrow, {TRIES} times: finished shards are safe"),
    ],
)
def test_a_shard_that_ends_every_process_ends_the_job(
    articles: Path, encoder: Encoder, folder: Path, tmp_path: Path, at_load: bool, message: str
) -> None:
    schedule = in_processes([ONE_THREAD], dying(tmp_path / "death", 100, at_load=at_load))
    with pytest.raises(WorkerError, match=message):
        run(articles, encoder, folder, schedule)


def test_an_error_of_a_process_is_the_error_of_the_job(articles: Path, encoder: Encoder, folder: Path) -> None:
    with pytest.raises(ModelError, match="is broken: choose another"):
        run(articles, encoder, folder, in_processes([ONE_THREAD] * 2, failing))
    assert parts_of_nothing(folder)


def parts_of_nothing(folder: Path) -> bool:
    return not folder.exists() or not list(folder.glob("part-*"))


def command(articles: Path, model: Path, folder: Path) -> Sequence[str]:
    options = ["--model", str(model), "--dtype", "float32", "--column", "text", "--shard-rows", "60"]
    return [sys.executable, "-m", "fastvec", "embed", str(articles), "-o", f"{folder}/", "--devices", "cpu:2", *options]


def start(articles: Path, model: Path, folder: Path) -> "subprocess.Popen[str]":
    """Start the command; returns when a shard is finished."""
    process = subprocess.Popen(
        command(articles, model, folder), env={**environment(), **ONE_THREAD}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob("_receipts/*/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_end_of(pids: Sequence[int]) -> None:
    deadline = time.monotonic() + 60
    for pid in pids:
        while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_job_that_is_stopped_before_a_model_is_loaded(articles: Path, encoder: Encoder, folder: Path) -> None:
    plan = plan_embed([articles], f"{folder}/", settings=encoder.settings, options=EmbedOptions(column="text"))
    job = ShardedJob(plan=plan, folder=LocalFolder(folder), shard_rows=60, batch_tokens=None)
    shards = in_processes([ONE_THREAD] * 2)(job, range(5), JobProgress(300, 0, lambda _: None), lambda: signal.SIGTERM)
    with pytest.raises(InterruptedRunError):
        list(shards)
    assert parts_of_nothing(folder)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_processes_and_the_command_resumes(
    articles: Path, tiny_llama: Path, folder: Path, expected: dict[str, bytes], number: signal.Signals
) -> None:
    process = start(articles, tiny_llama, folder)
    children = children_of(process.pid)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    wait_for_end_of(children)
    if number != signal.SIGKILL and process.returncode != 0:
        assert process.returncode == 128 + number
        assert f"stopped by {number.name}" in stderr
        assert "Traceback" not in stderr
    again = subprocess.run(
        command(articles, tiny_llama, folder), env={**environment(), **ONE_THREAD}, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert parts_of(folder) == expected
