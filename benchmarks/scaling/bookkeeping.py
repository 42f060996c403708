"""Runs the bookkeeping of a job with many shards: planning, receipts, progress, the manifest. Nothing is embedded.

    python -m benchmarks.scaling.bookkeeping STAGE FOLDER SHARDS    one stage in a process of its own; prints JSON

Receipts are files, written as workers on other machines would have written them. The stages:

- `run`: a job from planning it to publishing the manifest, whose workers report all shards as finished at once;
- `resume`: the same job, begun again when all receipts are there and the manifest is not: each receipt is read;
- `finished`: the command again, after that;
- `manifest`: the manifest is read, and its ranges are walked, as `fastvec verify` does.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fastvec.embedding.options import EmbedOptions
from fastvec.embedding.plan import EmbedPlan, plan_embed
from fastvec.jobs.progress import JobProgress
from fastvec.jobs.sharded import Schedule, ShardedJob, embed_shards
from fastvec.report import peak_memory_bytes
from fastvec.settings import resolve_settings
from fastvec.shards.folder import LocalFolder
from fastvec.shards.manifest import MANIFEST
from fastvec.shards.receipts import RECEIPTS, Receipt, part_name, receipt_name
from fastvec.shards.record import RECORD, Record
from fastvec.shards.verify import require_manifest
from fastvec.system.sealed import sealed

ROW_GROUP = 1024
SHARD_BYTES = 1 << 28
COUNTS = {
    "input_rows": 1,
    "nulls": 0,
    "empty": 0,
    "truncated": 0,
    "repaired": 0,
    "duplicates": 0,
    "reused": 0,
    "errors": 0,
    "tokens": 300,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage: its seconds, and those of the CPU, and the peak resident memory of its process."""

    name: str
    shards: int
    seconds: float
    cpu: float
    memory: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.shards:,} shards in {self.seconds:.1f} s, CPU {self.cpu:.1f} s, "
            f"{self.memory / 1e6:,.0f} MB peak"
        )


def stages(folder: Path, shards: int) -> Iterator[Stage]:
    """Run all stages in `folder`, which must be empty, each in a process of its own."""
    prepare(folder, shards)
    for name in STAGES:
        command = [sys.executable, "-m", "benchmarks.scaling.bookkeeping", name, str(folder), str(shards)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        yield Stage(**json.loads(done.stdout))


def prepare(folder: Path, shards: int) -> None:
    """Write the input, of one row for each shard, and the receipts of all shards."""
    texts = pa.table({"text": pa.array(["x"] * shards)})
    pq.write_table(texts, folder / "texts.parquet", row_group_size=ROW_GROUP)
    output, job = folder / "vecs", record_of(planned(folder)).id
    (output / RECEIPTS / job).mkdir(parents=True)
    for shard in range(shards):
        (output / receipt_name(job, shard)).write_bytes(sealed(asdict(receipt_of(shard))))


def record_of(plan: EmbedPlan) -> Record:
    return Record(id="0", fingerprint=plan.fingerprint, limits={"shard_rows": 1}, choices=None, ranges=None)


class Pretended(LocalFolder):
    """A folder that lists files of shards, which are not there."""

    def __init__(self, path: Path, shards: int) -> None:
        super().__init__(path)
        self._shards = shards

    def names(self, inside: str = "") -> dict[str, int]:
        parts = {} if inside else {part_name(shard, self._shards): SHARD_BYTES for shard in range(self._shards)}
        return parts | super().names(inside)


def receipt_of(shard: int) -> Receipt:
    return Receipt(
        shard=shard,
        first_row=shard,
        input_rows=1,
        rows=1,
        bytes=SHARD_BYTES,
        checksum=f"{shard:08x}",
        counts=COUNTS,
        errors=[],
    )


def planned(folder: Path) -> EmbedPlan:
    settings = resolve_settings(None, device="cpu")
    options = EmbedOptions(column="text")
    return plan_embed([folder / "texts.parquet"], f"{folder}/vecs/", settings=settings, options=options)


def reporting_all(
    job: ShardedJob, shards: Sequence[int], progress: JobProgress, stop_signal: Callable[[], int | None]
) -> Iterator[Receipt]:
    """A schedule whose workers finish every shard at once."""
    return map(receipt_of, shards)


def reporting_none(
    job: ShardedJob, shards: Sequence[int], progress: JobProgress, stop_signal: Callable[[], int | None]
) -> Iterator[Receipt]:
    raise RuntimeError(f"{len(shards):,} shards are missing")


def run(folder: Path, schedule: Schedule) -> None:
    plan = planned(folder)
    report = embed_shards(
        plan,
        Pretended(plan.output, plan.corpus.rows),
        schedule,
        part=None,
        shard_rows=1,
        batch_tokens=None,
        overwrite=False,
        progress=lambda _: None,
        stop_signal=lambda: None,
    )
    if report.missing_shards:
        raise RuntimeError(str(report))


def begin(folder: Path) -> None:
    """Run a job of which no receipt is there until its workers report them."""
    plan, hidden = planned(folder), folder / "receipts"
    (plan.output / RECORD).unlink(missing_ok=True)
    record_of(plan).write(LocalFolder(plan.output))
    receipts = plan.output / RECEIPTS
    receipts.rename(hidden)

    def publish(
        job: ShardedJob, shards: Sequence[int], progress: JobProgress, stop_signal: Callable[[], int | None]
    ) -> Iterator[Receipt]:
        hidden.rename(receipts)
        return map(receipt_of, shards)

    run(folder, publish)


def resume(folder: Path) -> None:
    (folder / "vecs" / MANIFEST).unlink()
    run(folder, reporting_none)


def finished(folder: Path) -> None:
    run(folder, reporting_none)


def manifest(folder: Path) -> None:
    found = require_manifest(LocalFolder(folder / "vecs"))
    if max(shard.rows_of_inputs.stop for shard in found.shards) != found.rows:
        raise RuntimeError("the ranges do not end where the job does")


STAGES = {"run": begin, "resume": resume, "finished": finished, "manifest": manifest}


def main() -> None:
    name, folder, shards = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    started, cpu = time.perf_counter(), time.process_time()
    STAGES[name](folder)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    memory = peak_memory_bytes() or 0  # not known on Windows
    print(json.dumps(asdict(Stage(name=name, shards=shards, seconds=seconds, cpu=cpu, memory=memory))))


if __name__ == "__main__":
    main()
