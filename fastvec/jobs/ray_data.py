"""Embeds shards in the actors of a Ray cluster, to which Ray Data hands them.

Ray Data is used for what it does well: it starts actors on the nodes, gives each the next shard when it has finished
one, and does a shard again elsewhere when its actor or node is lost. What crosses it are numbers of shards and
receipts; the actors themselves read the texts and write the vectors. At the end of a run that is stopped or fails, the
actors are killed, and lose the chunks that are not durable.

Errors, tries of a shard and signals are this module's and `ray_actor`'s, because Ray passes on errors as tracebacks,
tries for ever, and handles SIGTERM itself.
"""

import logging
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from uuid import uuid4

from fastvec import __version__
from fastvec.errors import InterruptedRunError, UsageError, one_line
from fastvec.jobs.progress import JobProgress
from fastvec.jobs.ray_actor import Embedded, Task, answered, unpacked
from fastvec.jobs.sharded import Schedule, ShardedJob
from fastvec.jobs.worker import LoadEncoder, load_encoder
from fastvec.settings import EncoderSettings, resolve_settings
from fastvec.shards.receipts import RECEIPTS, Receipt
from fastvec.system.stop_signals import STOP_SIGNALS

CONNECT_SECONDS = 5.0  # Ray itself tries a wrong address for minutes
# Shards are handed out in blocks, which cost the driver 6 ms each; with more shards than this a block has several.
MOST_BLOCKS = 10_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Actors:
    """How many actors there are, and what each has."""

    count: int
    cpus: int
    gpus: int


def actors_of(nodes: Sequence[Mapping[str, float]], device: str, count: int | None) -> Actors:
    """Return the actors that use a whole cluster, whose nodes have these numbers of `CPU` and `GPU`.

    For `cuda` that is one for each GPU, with its share of its node's CPUs. For `cpu` it is one for each node, or
    `count` of them, with as many CPUs as each can have if all have equally many.
    Raises UsageError if the cluster has no GPU, or fewer CPUs than actors.
    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if device == "cuda":
        gpus = [int(node.get("GPU", 0)) for node in nodes]
        if not any(gpus):
            raise UsageError("the Ray cluster has no GPU and the device is cuda: add a node with one, or choose cpu")
        shares = [cpu // gpu for cpu, gpu in zip(cpus, gpus, strict=True) if gpu]
        return Actors(count=sum(gpus), cpus=min(shares), gpus=1)
    wanted = count or sum(number > 0 for number in cpus) or 1
    for each in range(max(cpus, default=0), 0, -1):
        if sum(number // each for number in cpus) >= wanted:
            return Actors(count=wanted, cpus=each, gpus=0)
    raise UsageError(f"the Ray cluster has {sum(cpus)} CPUs, and cpu:{wanted} needs {wanted}: give a smaller number")


def in_ray(count: int | None, load: LoadEncoder = load_encoder) -> Schedule:
    """Return a schedule that embeds shards in the actors of a Ray cluster, of which `count` says how many on CPUs.

    The cluster is the one that Ray is connected to, or else the one at RAY_ADDRESS, or else this machine.
    Raises UsageError if Ray is not installed.
    """
    _require_ray()

    def run(
        job: ShardedJob, shards: Sequence[int], progress: JobProgress, stop_signal: Callable[[], int | None]
    ) -> Iterator[Receipt]:
        logged = set[str]()
        with _connected(), _interrupting(stop_signal), _marked(job, load) as task, _silent_data():
            actors = actors_of(_nodes(), job.plan.settings.device, count)
            with closing(_answers(task, shards, actors)) as answers:
                for answer in answers:
                    embedded: Embedded = unpacked(answer)
                    for level, message in embedded.log:
                        if message not in logged:  # each actor logs the same when it loads the model
                            logger.log(level, "%s", message)
                        logged.add(message)
                    if embedded.progress is not None:
                        progress.update(embedded.receipt.shard, embedded.progress)
                    yield embedded.receipt
                    if (number := stop_signal()) is not None:
                        raise InterruptedRunError("", number)

    return run


def resolve_in_ray(**options: Any) -> EncoderSettings:
    """Resolve the settings of an encoder for a cluster; on one of its nodes if only these have GPUs.

    Raises what `resolve_settings` raises, and UsageError if Ray cannot be used.
    """
    import torch

    _require_ray()
    if options.get("device") == "cpu" or torch.cuda.is_available() or "RAY_ADDRESS" not in os.environ:
        return resolve_settings(**options)
    import ray

    def resolve() -> bytes:  # local, so that it is pickled by value
        return answered(lambda: resolve_settings(**options))

    with _connected():
        if not any(node.get("GPU") for node in _nodes()):
            return resolve_settings(**options)
        settings: EncoderSettings = unpacked(ray.get(ray.remote(num_cpus=0, num_gpus=1)(resolve).remote()))
    return settings


def _require_ray() -> None:
    if any(find_spec(name) is None for name in ("ray", "pandas")):
        raise UsageError("--engine ray needs Ray Data: pip install 'fastvec[ray]'")


@contextmanager
def _connected() -> Iterator[None]:
    """Be connected to a cluster in this block. Raises UsageError if there is none at the address."""
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    _require_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else each end of an actor is reported
    own = signal.getsignal(signal.SIGTERM)
    try:
        with _stderr_closed():
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"Ray cannot be used at {address}: {one_line(error)}") from error
    finally:
        if _in_main_thread():
            signal.signal(signal.SIGTERM, own)  # Ray replaces it
    try:
        yield
    finally:
        with _stdout_closed():
            ray.shutdown()


def _require_reachable(address: str) -> None:
    """Raise UsageError if nothing answers at an address of a host and a port."""
    if "://" in address:
        raise UsageError(
            "RAY_ADDRESS is a URL, for which Ray runs no driver here: give host:port of a cluster that this machine "
            "belongs to, or send the command to it with ray job submit"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"no Ray cluster answers at {address} ({one_line(error)}): correct RAY_ADDRESS") from error


def _nodes() -> list[Mapping[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def _marked(job: ShardedJob, load: LoadEncoder) -> Iterator[bytes]:
    """Yield the pickled task of the actors. In this block the output folder has a file, by which they recognize it."""
    run = uuid4().hex
    task = Task(
        job=job,
        load=load,
        run=run,
        mark=f"{RECEIPTS}/{run}.ray",
        folder=os.getcwd(),
        log_level=logging.getLogger("fastvec").getEffectiveLevel(),
    )
    job.folder.create(task.mark, b"")
    try:
        yield pickle.dumps(task)
    finally:
        job.folder.remove(task.mark)


def _answers(task: bytes, shards: Sequence[int], actors: Actors) -> Generator[bytes]:
    """Yield what the actors answer, in the order in which they do."""
    import ray.data

    blocks = min(len(shards), MOST_BLOCKS)
    count = min(actors.count, blocks)
    dataset = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=blocks).map(
        _actor_class(),
        fn_constructor_kwargs={"task": task, "version": __version__},
        # one task at a time: a shard that waits at a busy actor cannot go to an idle one
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
        num_cpus=actors.cpus,
        **({"num_gpus": actors.gpus} if actors.gpus else {}),
    )
    batches = iter(dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"))
    while True:
        with _stdout_closed():
            batch = next(batches, None)
        if batch is None:
            return
        yield from batch["answer"].to_pylist()


def _actor_class() -> type:
    """Return the class of the actors. It is pickled by value, so that it can say that a node has no fastvec."""

    class EmbedShard:
        def __init__(self, task: bytes, version: str) -> None:
            self._task, self._version = task, version
            self._actor: Any = None

        def __call__(self, row: Mapping[str, int]) -> dict[str, bytes]:
            import pickle
            import socket

            try:
                from fastvec import __version__ as found
                from fastvec.jobs.ray_actor import ShardActor
            except ImportError as error:
                found = f"cannot be imported ({error})"
            if found != self._version:
                node, need = socket.gethostname(), "install the same version on every node"
                problem = f"fastvec on node {node} of the Ray cluster: {found}; here it is {self._version}: {need}"
                return {"answer": pickle.dumps(("UsageError", problem))}
            self._actor = self._actor or ShardActor(self._task)
            answer: bytes = self._actor(row["shard"])
            return {"answer": answer}

    return EmbedShard


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _interrupting(stop_signal: Callable[[], int | None]) -> Iterator[None]:
    """In this block, raise InterruptedRunError at a signal of which `stop_signal` tells: nothing else ends Ray's waits.

    What handles the signal now is called before.
    """
    signals = STOP_SIGNALS if _in_main_thread() else ()
    before = {number: signal.getsignal(number) for number in signals}

    def stop(number: int, frame: Any) -> None:
        handler = before[number]
        if callable(handler):
            handler(number, frame)
        if (received := stop_signal()) is not None:
            raise InterruptedRunError("", received)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, stop)
    try:
        if (received := stop_signal()) is not None:  # while Ray started
            raise InterruptedRunError("", received)
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)


@contextmanager
def _silent_data() -> Iterator[None]:
    """Let Ray Data report nothing in this block, and wait as long as a shard takes."""
    from ray.data import DataContext

    context, log = DataContext.get_current(), logging.getLogger("ray.data")
    # by default a run ends when no shard is finished for 30 minutes
    wanted = {"enable_progress_bars": False, "print_on_execution_start": False, "execution_no_progress_timeout_s": -1}
    before, level = {name: getattr(context, name) for name in wanted}, log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        log.setLevel(level)


@contextmanager
def _stdout_closed() -> Iterator[None]:
    """Send to nowhere what is printed in this block: a thread of Ray prints reports about actors that died."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Send to nowhere what is written to stderr in this block, by C++ too."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
