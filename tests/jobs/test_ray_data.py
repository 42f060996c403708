"""Shards embedded by actors of a Ray cluster: whatever happens to them, the output is that of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastvec import Encoder, embed
from fastvec.errors import InputError, ModelError, UsageError, WorkerError
from fastvec.jobs.processes import TRIES
from fastvec.jobs.ray_data import Actors, actors_of, in_ray, resolve_in_ray
from fastvec.jobs.worker import LoadEncoder, load_encoder
from fastvec.report import Progress, Report
from fastvec.settings import EncoderSettings, resolve_settings
from fastvec.shards.folder import LocalFolder
from fastvec.shards.verify import verify_folder
from tests.helpers.processes import environment
from tests.helpers.shards import parts_of, run_sharded
from tests.helpers.workers import dying, failing, waiting, wrong

# Ray's own warnings, and its connections that a killed process leaves
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DEDUP_LOGS": "0"}
# the command, with an encoder that takes longer, so that something can happen to it
SLOW_COMMAND = """
from functools import partial
import fastvec.jobs.embedding as embedding
from fastvec.cli import process
from tests.helpers.workers import waiting
embedding.in_ray = partial(embedding.in_ray, load=waiting(0.7))
process()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with a CPU each, on this machine."""
    pytest.importorskip("ray.data", reason="ray is not installed: it is in the extra ray")
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def connected(cluster: Any) -> Any:
    """The cluster, to which this process is connected."""
    import ray

    if not ray.is_initialized():
        ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
    return cluster


def run(
    articles: Path,
    settings: EncoderSettings,
    folder: Path,
    load: LoadEncoder = load_encoder,
    progress: Callable[[Progress], None] = lambda _: None,
    planned: Callable[[], object] = lambda: None,
) -> Report:
    return run_sharded(articles, settings, folder, in_ray(None, load), progress, planned)


def test_two_nodes_write_the_bytes_of_one_process(
    connected: Any, articles: Path, encoder: Encoder, folder: Path, expected: dict[str, bytes]
) -> None:
    seen: list[Progress] = []
    report = run(articles, encoder.settings, folder, progress=seen.append)

    assert (report.rows, report.shards, report.tokens > 0) == (300, 5, True)
    assert (seen[-1].rows, seen[-1].new_rows, seen[-1].tokens) == (300, 300, report.tokens)
    assert parts_of(folder) == expected
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("part-"))
    assert names == ["_job.json", "_manifest.json", "_receipts"]


def test_the_shard_of_an_actor_that_dies_is_done_again(
    connected: Any,
    articles: Path,
    encoder: Encoder,
    folder: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert run(articles, encoder.settings, folder, dying(tmp_path / "death", 1)).rows == 300
    assert parts_of(folder) == expected
    (warning,) = caplog.messages
    assert warning.startswith("an actor of Ray died at part-0000")
    assert capfd.readouterr() == ("", "")


def test_a_shard_that_ends_every_actor_ends_the_job(
    connected: Any, articles: Path, encoder: Encoder, folder: Path, tmp_path: Path
) -> None:
    message = rf"the actor of Ray died at part-0000[01].arrow, {TRIES} times: finished shards are safe"
    with pytest.raises(WorkerError, match=message):
        run(articles, encoder.settings, folder, dying(tmp_path / "death", 100))
    # the tries of one run are not those of the next one
    assert run(articles, encoder.settings, folder).rows == 300


def test_an_error_of_an_actor_is_the_error_of_the_job(
    connected: Any, articles: Path, encoder: Encoder, folder: Path, expected: dict[str, bytes]
) -> None:
    with pytest.raises(ModelError, match=r"^\S+ is broken: choose another$"):
        run(articles, encoder.settings, folder, failing)
    with pytest.raises(Exception, match=r"(?s)workers.py\", line \d+, in wrong\n.*ZeroDivisionError"):
        run(articles, encoder.settings, folder, wrong)
    assert not list(folder.glob("part-*"))


def test_what_a_node_does_not_see_is_named(
    connected: Any, articles: Path, encoder: Encoder, folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(articles.read_bytes())
    with pytest.raises(InputError, match=r"^node \S+ of the Ray cluster has no \S+copy.parquet: put the inputs where"):
        run(copy, encoder.settings, folder, planned=copy.unlink)
    checkpoint = replace(encoder.settings.checkpoint, base=Path("/nowhere"), name="/nowhere")
    with pytest.raises(ModelError, match=r"^node \S+: /nowhere: no such folder$"):
        run(articles, replace(encoder.settings, checkpoint=checkpoint), folder)


def test_a_cluster_without_gpus(connected: Any, articles: Path, encoder: Encoder, folder: Path) -> None:
    with pytest.raises(UsageError, match="the Ray cluster has no GPU and the device is cuda"):
        run(articles, replace(encoder.settings, device="cuda"), folder)


def test_the_shard_of_a_node_that_is_lost_is_done_elsewhere(
    connected: Any, articles: Path, encoder: Encoder, folder: Path, expected: dict[str, bytes]
) -> None:
    lost = [connected.add_node(num_cpus=1)]
    connected.wait_for_nodes()

    def lose(progress: Progress) -> None:
        if lost:
            connected.remove_node(lost.pop(), allow_graceful=False)

    assert run(articles, encoder.settings, folder, waiting(0.5), progress=lose).rows == 300
    assert parts_of(folder) == expected


def command(articles: Path, model: Path, folder: Path) -> Sequence[str]:
    options = ["--model", str(model), "--dtype", "float32", "--column", "text", "--shard-rows", "60"]
    return [sys.executable, "-c", SLOW_COMMAND, "embed", str(articles), "-o", f"{folder}/", "--engine", "ray", *options]


def start(cluster: Any, articles: Path, model: Path, folder: Path) -> "subprocess.Popen[str]":
    """Start the command on the cluster; returns when a shard is finished."""
    process = subprocess.Popen(
        command(articles, model, folder),
        env={**environment(), **QUIET, "RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("_receipts/*/*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_stops_the_command_without_a_word_of_ray(
    cluster: Any, articles: Path, tiny_llama: Path, folder: Path, number: signal.Signals
) -> None:
    process = start(cluster, articles, tiny_llama, folder)
    os.killpg(process.pid, number)  # as a terminal does
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (128 + number, "")
    *others, last = stderr.splitlines()
    assert last.startswith(f"fastvec: stopped by {number.name}: ")
    assert last.endswith(" of 5 shards are finished; run the same command again to resume")
    assert [line for line in others if " rows/s" not in line] == []
    assert list(folder.glob("_receipts/*/*.json"))


def test_a_command_that_is_killed_resumes(
    cluster: Any, articles: Path, tiny_llama: Path, folder: Path, expected: dict[str, bytes]
) -> None:
    process = start(cluster, articles, tiny_llama, folder)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    again = subprocess.run(  # at once, when actors of the killed command still live
        command(articles, tiny_llama, folder),
        env={**environment(), **QUIET, "RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert "of them from an earlier run" in again.stderr
    assert parts_of(folder) == expected
    assert verify_folder(LocalFolder(folder)).return_code == 0


def test_settings_are_those_of_a_node_that_has_a_gpu(
    cluster: Any, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    functions: list[dict[str, int]] = []
    remote = ray.remote

    def noted(**needs: int) -> Any:
        if "num_gpus" in needs:  # modules of Ray that are imported meanwhile have functions too
            functions.append(needs)
        return remote(**needs)

    monkeypatch.setattr("ray.remote", noted)
    expected = resolve_settings(tiny_llama, device="auto")
    assert resolve_in_ray(model=tiny_llama, device="auto") == expected
    assert functions == []  # the command's own machine is as good as the nodes
    node = cluster.add_node(num_cpus=0, num_gpus=1)
    try:
        assert resolve_in_ray(model=tiny_llama, device="auto") == expected
        with pytest.raises(ModelError, match=r"^/nowhere: no such folder$"):
            resolve_in_ray(model="/nowhere", device="auto")
        assert functions == [{"num_cpus": 0, "num_gpus": 1}] * 2
    finally:
        cluster.remove_node(node)


def test_ray_is_started_on_this_machine_and_prints_nothing(articles: Path, tiny_llama: Path, folder: Path) -> None:
    pytest.importorskip("ray.data", reason="ray is not installed: it is in the extra ray")
    options = ["--engine", "ray", "--column", "text", "--model", str(tiny_llama), "--limit", "100"]
    done = subprocess.run(
        [sys.executable, "-m", "fastvec", "embed", str(articles), "-o", f"{folder}/", "--json", "--quiet", *options],
        env={name: value for name, value in environment().items() if not name.startswith("RAY_")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr, json.loads(done.stdout)["rows"]) == (0, "", 100)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", r"no Ray cluster answers at 127.0.0.1:1 \(.*\): correct RAY_ADDRESS"),
        ("ray://head:10001", "RAY_ADDRESS is a URL, for which Ray runs no driver here: give host:port"),
        ("nonsense", "Ray cannot be used at nonsense: "),
    ],
)
def test_an_address_without_a_cluster(
    articles: Path, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed: it is in the extra ray")
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match=message):
        run(articles, encoder.settings, folder)


def test_without_ray_the_extra_is_named(
    articles: Path, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastvec.jobs.ray_data.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^--engine ray needs Ray Data: pip install 'fastvec\[ray\]'$"):
        embed([articles], f"{folder}/", encoder=encoder, column="text", engine="ray")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "engine 'spark' is not known: give ray, or leave it out"),
        ({"engine": "ray", "devices": "0,1"}, "--devices 0,1 is not for --engine ray, which uses all GPUs"),
    ],
)
def test_options_that_cannot_be(
    articles: Path, encoder: Encoder, folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        embed([articles], f"{folder}/", encoder=encoder, column="text", **options)
    with pytest.raises(UsageError, match="needs an output in shards"):
        embed([articles], folder.with_suffix(".arrow"), encoder=encoder, column="text", engine="ray")


@pytest.mark.parametrize(
    ("nodes", "device", "count", "actors"),
    [
        ([{"CPU": 8}], "cpu", None, Actors(count=1, cpus=8, gpus=0)),
        ([{"CPU": 8}], "cpu", 3, Actors(count=3, cpus=2, gpus=0)),
        ([{"CPU": 0}, {}, {"CPU": 8}, {"CPU": 8}], "cpu", None, Actors(count=2, cpus=8, gpus=0)),
        ([{"CPU": 4}, {"CPU": 64}, {"CPU": 64}], "cpu", None, Actors(count=3, cpus=32, gpus=0)),
        ([{"CPU": 4}, {"CPU": 96, "GPU": 8}, {"CPU": 48, "GPU": 8}], "cuda", None, Actors(count=16, cpus=6, gpus=1)),
    ],
)
def test_a_whole_cluster_is_used(nodes: list[dict[str, float]], device: str, count: int | None, actors: Actors) -> None:
    assert actors_of(nodes, device, count) == actors


def test_more_actors_than_cpus() -> None:
    with pytest.raises(UsageError, match="the Ray cluster has 4 CPUs, and cpu:5 needs 5: give a smaller number"):
        actors_of([{"CPU": 2}, {"CPU": 2}], "cpu", 5)
