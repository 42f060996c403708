"""Shards embedded by several processes: whatever happens to them, the output is that of one process."""

import os
import pickle
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fastvec import Encoder, embed
from fastvec.embedding.options import EmbedOptions
from fastvec.embedding.plan import plan_embed
from fastvec.errors import InterruptedRunError, ModelError, WorkerError
from fastvec.jobs import processes
from fastvec.jobs.processes import TRIES, in_processes
from fastvec.jobs.progress import JobProgress
from fastvec.jobs.sharded import ShardedJob
from fastvec.jobs.worker import load_encoder
from fastvec.report import Progress
from fastvec.shards.folder import LocalFolder
from tests.helpers.processes import environment, process_exists
from tests.helpers.shards import parts_of, run_sharded
from tests.helpers.workers import dying, failing, signalled, stuck, unreadable

if sys.platform == "win32":
    pytest.skip("needs signals", allow_module_level=True)

ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


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
    assert run_sharded(articles, encoder.settings, folder, schedule).rows == 300
    warning = "a worker process was killed by SIGKILL at part-00000.arrow; another one takes its place"
    assert caplog.messages == [warning] * (TRIES - 1)
    assert parts_of(folder) == expected


@pytest.mark.slow
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
        run_sharded(articles, encoder.settings, folder, schedule)


def test_an_error_of_a_process_is_the_error_of_the_job(articles: Path, encoder: Encoder, folder: Path) -> None:
    with pytest.raises(ModelError, match="is broken: choose another"):
        run_sharded(articles, encoder.settings, folder, in_processes([ONE_THREAD] * 2, failing))
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
        while process_exists(pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def job_of(articles: Path, encoder: Encoder, folder: Path) -> ShardedJob:
    plan = plan_embed([articles], f"{folder}/", settings=encoder.settings, options=EmbedOptions(column="text"))
    return ShardedJob(plan=plan, folder=LocalFolder(folder), shard_rows=60, batch_tokens=None)


def no_progress() -> JobProgress:
    return JobProgress(300, 0, lambda _: None)


def test_a_job_that_is_stopped_before_a_model_is_loaded(articles: Path, encoder: Encoder, folder: Path) -> None:
    job = job_of(articles, encoder, folder)
    shards = in_processes([ONE_THREAD] * 2)(job, range(5), no_progress(), lambda: signal.SIGTERM)
    with pytest.raises(InterruptedRunError):
        list(shards)
    assert parts_of_nothing(folder)


@pytest.mark.slow
def test_a_process_that_is_stuck_is_killed_when_the_job_is_stopped(
    articles: Path,
    encoder: Encoder,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(processes, "END_SECONDS", 1)

    def stop_signal() -> int | None:
        return signal.SIGTERM if (tmp_path / "stuck").exists() else None

    job = job_of(articles, encoder, folder)
    shards = in_processes([ONE_THREAD], stuck(tmp_path))(job, range(5), no_progress(), stop_signal)
    with pytest.raises(InterruptedRunError):
        list(shards)
    assert caplog.messages == ["a worker process did not end within 1 seconds and is killed"]
    assert not (tmp_path / "moves").exists()


def worker_process(*commands: Any, stdout: int) -> "subprocess.Popen[bytes]":
    """Start a process that embeds shards, with these commands on its open stdin."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fastvec.jobs.worker_process"],
        env={**environment(), **ONE_THREAD},
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    for given in commands:
        process.stdin.write(pickle.dumps(given))
    process.stdin.flush()
    return process


@pytest.mark.slow
def test_a_process_that_is_stuck_ends_after_the_one_that_started_it(
    articles: Path, encoder: Encoder, folder: Path, tmp_path: Path
) -> None:
    job = job_of(articles, encoder, folder)
    process = worker_process((job, stuck(tmp_path), 0, 0.5), stdout=subprocess.DEVNULL)
    process.communicate()
    assert process.returncode == 1
    assert not (tmp_path / "moves").exists()


@pytest.mark.slow
def test_a_process_whose_messages_nobody_reads_ends_quietly(articles: Path, encoder: Encoder, folder: Path) -> None:
    job = job_of(articles, encoder, folder)
    process = worker_process((job, load_encoder, 30, 60.0), ("begin",), ("embed", 0), stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, b"")


@pytest.mark.slow
def test_signals_to_a_process_do_not_end_it(
    articles: Path, encoder: Encoder, folder: Path, expected: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert run_sharded(articles, encoder.settings, folder, in_processes([ONE_THREAD], signalled)).rows == 300
    assert caplog.messages == []
    assert parts_of(folder) == expected


@pytest.mark.slow
def test_a_message_that_cannot_be_read_ends_the_job(articles: Path, encoder: Encoder, folder: Path) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'number'"):
        run_sharded(articles, encoder.settings, folder, in_processes([ONE_THREAD], unreadable))


class ScriptedWorker(processes._Worker):
    """Answers commands at once. The first process at the last shard dies when all others have been told to end."""

    started: "list[ScriptedWorker]"

    def __init__(self, environment: Mapping[str, str], messages: "queue.SimpleQueue[Any]") -> None:
        self.environment, self.shard, self.told_to_end = environment, None, False
        self._messages = messages
        self.started.append(self)

    def send(self, *message: Any) -> None:
        if len(message) > 2:
            self._messages.put((self, ("loaded", None)))
        elif message == ("begin",):
            self._messages.put((self, ("begun", None)))
        elif message[1] != 3 or len(self.started) > 4:
            self._messages.put((self, ("finished", message[1])))

    def close(self) -> None:
        self.told_to_end = True
        ending = [worker for worker in self.started if worker.told_to_end]
        if len(self.started) == 4 and len(ending) == 3:
            dying = next(worker for worker in self.started if not worker.told_to_end)
            for worker in (dying, *ending):
                self._messages.put((worker, None))
        elif len(self.started) > 4:
            self._messages.put((self, None))

    def end(self, deadline: float) -> str:
        return "ended"


def test_processes_that_were_told_to_end_are_not_deaths(
    articles: Path, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "_Worker", ScriptedWorker)
    monkeypatch.setattr(ScriptedWorker, "started", [], raising=False)
    job = job_of(articles, encoder, folder)
    shards = in_processes([{}] * 4)(job, range(4), no_progress(), lambda: None)
    assert [*map(str, shards)] == ["0", "1", "2", "3"]
    assert caplog.messages == ["a worker process ended at part-00003.arrow; another one takes its place"]
    assert len(ScriptedWorker.started) == 5


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes in /proc")
@pytest.mark.parametrize(
    ("number", "to_all"),
    [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGKILL, False)],
)
def test_a_signal_ends_all_processes_and_the_command_resumes(
    articles: Path, tiny_llama: Path, folder: Path, expected: dict[str, bytes], number: signal.Signals, to_all: bool
) -> None:
    process = start(articles, tiny_llama, folder)
    children = children_of(process.pid)
    for pid in (*children, process.pid) if to_all else (process.pid,):
        os.kill(pid, number)
    _, stderr = process.communicate(timeout=60)
    wait_for_end_of(children)
    assert "Traceback" not in stderr
    assert "another one takes its place" not in stderr
    if number != signal.SIGKILL and process.returncode != 0:
        assert process.returncode == 128 + number
        assert f"stopped by {number.name}" in stderr
    again = subprocess.run(
        command(articles, tiny_llama, folder), env={**environment(), **ONE_THREAD}, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert parts_of(folder) == expected
