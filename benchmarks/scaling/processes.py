"""Jobs of several processes, with an encoder that waits as long as a GPU would compute.

The time of all processes together is divided: until a process begins its first chunk (the start); its device computing;
its device waiting between two chunks; and after its last chunk, until the job has ended (the end).
"""

import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from click import ClickException

from benchmarks.engines.models import ModelShape, texts_of
from benchmarks.scaling.sleeping import DeviceLog, read_logs, sleeping
from fastvec.embedding.options import EmbedOptions
from fastvec.embedding.plan import EmbedPlan, plan_embed
from fastvec.jobs.devices import parse_devices
from fastvec.jobs.processes import in_processes
from fastvec.jobs.ray_data import in_ray
from fastvec.jobs.sharded import Schedule, embed_shards
from fastvec.jobs.worker import LoadEncoder
from fastvec.settings import resolve_settings
from fastvec.shards.folder import LocalFolder
from fastvec.shards.verify import verify_folder
from fastvec.texts.load import load_tokenizer

TEXT_TOKENS = 300  # of a document
SHARDS = 8  # of each worker: by default a job has 64, which are so many for each of eight workers
ROW_GROUP = 1024
SAMPLE = 256  # texts, from which the characters of a token are counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """A job of some workers. Seconds are means of the workers; `cpu` is what all processes used after their imports."""

    workers: int
    seconds: float
    tokens: int
    imported: float  # until a process has imported everything, torch too
    start: float  # until its device begins to compute
    busy: float
    between: float
    end: float
    cpu: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    @property
    def steady_rate(self) -> float:
        """Tokens a second from the first chunk of each worker to its last one."""
        return self.tokens / (self.busy + self.between)

    def rate_of_job(self, seconds: float) -> float:
        """Tokens a second of a longer job, with `seconds` of work for each worker and as many shards.

        Its start, the waiting between its shards and its end take as long as they did here.
        """
        work = self.tokens * seconds / self.busy
        return work / (seconds + self.start + self.between + self.end)

    def __str__(self) -> str:
        parts = {name: getattr(self, name) / self.seconds for name in ("start", "busy", "between", "end")}
        shares = ", ".join(f"{name} {share:.1%}" for name, share in parts.items())
        cpu = ""
        if self.cpu > 0:  # Ray's actors are no children of this process, so that it does not know their times
            a_token, cores = self.cpu / self.tokens * 1e6, self.cpu / self.seconds
            cpu = f"; after that the CPU {a_token:.2f} µs a token, {cores:.2f} cores"
        return (
            f"{self.workers} workers: {self.rate:,.0f} tokens/s in {self.seconds:.1f} s ({shares}); imports took "
            f"{self.imported:.1f} s{cpu}"
        )


def measured(
    texts: Iterator[str],
    schedule: Callable[[LoadEncoder], Schedule],
    *,
    rows: int,
    workers: int,
    shape: ModelShape,
    rate: float,
) -> Timing:
    """Run a job of `rows` texts with devices of this `rate`, and vectors as wide as those of a model of `shape`.

    Raises ClickException if the output does not pass `fastvec verify`.
    """
    settings = replace(resolve_settings(None, device="cpu"), dims=shape.hidden)
    options = EmbedOptions(column="text", vector_dtype="float16")
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name), Path(name, "log")
        log.mkdir()
        source = write_texts(folder / "texts.parquet", texts, rows)
        plan = plan_embed([source], f"{folder}/vecs/", settings=settings, options=options)
        how = schedule(sleeping(rate=rate, parameters=shape.parameters, log=log))
        before, started = _cpu_seconds(), time.monotonic()
        run(plan, how, shard_rows=max(rows // (SHARDS * workers), 1))
        ended, cpu = time.monotonic(), _cpu_seconds() - before
        found = verify_folder(LocalFolder(plan.output))
        if found.return_code:
            raise ClickException(str(found))
        return timing(read_logs(log), started, ended, cpu=cpu)


def timing(logs: Sequence[DeviceLog], started: float, ended: float, *, cpu: float) -> Timing:
    """Return how the time of a job from `started` to `ended` was spent, by what its processes noted."""

    def mean(of: Callable[[DeviceLog], float]) -> float:
        return sum(map(of, logs)) / len(logs)

    return Timing(
        workers=len(logs),
        seconds=ended - started,
        tokens=sum(log.tokens for log in logs),
        imported=mean(lambda log: log.loading - started),
        start=mean(lambda log: log.begin - started),
        busy=mean(lambda log: log.busy),
        between=mean(lambda log: log.end - log.begin - log.busy),
        end=mean(lambda log: ended - log.end),
        cpu=cpu - sum(log.imports for log in logs),
    )


def workers_of(engine: str, count: int) -> Callable[[LoadEncoder], Schedule]:
    """Return what embeds shards in so many processes, each with its part of this machine's cores, or actors of Ray."""
    if engine == "ray":
        return partial(in_ray, count)
    devices = parse_devices(f"cpu:{count}")
    return partial(in_processes, () if devices is None else devices.environments)


def run(plan: EmbedPlan, how: Schedule, *, shard_rows: int | None) -> None:
    """Embed all shards of a plan."""
    embed_shards(
        plan,
        LocalFolder(plan.output),
        how,
        part=None,
        shard_rows=shard_rows,
        batch_tokens=None,
        overwrite=False,
        progress=lambda _: None,
        stop_signal=lambda: None,
    )


def texts_of_length(corpus: Path, column: str, tokens: int = TEXT_TOKENS) -> Iterator[str]:
    """Yield texts of about so many tokens of the bundled model, pieces of the corpus's, without an end."""
    tokenizer = load_tokenizer(resolve_settings(None, device="cpu").checkpoint).backend_tokenizer
    sample = list(islice(texts_of(corpus, column), SAMPLE))
    joined = " ".join(sample)[: 1 << 20]
    size = int(len(joined) / len(tokenizer.encode(joined).ids) * tokens)

    for text in chain.from_iterable(texts_of(corpus, column) for _ in cycle([None])):
        yield from (text[begin : begin + size] for begin in range(0, max(len(text) - size, 0) + 1, size))


def write_texts(path: Path, texts: Iterator[str], rows: int) -> Path:
    """Write so many texts, each with a number before it: equal ones would be encoded once."""
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, rows, ROW_GROUP):
            group = enumerate(islice(texts, min(ROW_GROUP, rows - begin)), begin)
            writer.write_table(pa.table({"text": [f"{number} {text}" for number, text in group]}, schema))
    return path


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
