"""Measures what it costs to read an output back before it is published, against writing it.

    PYTHONPATH=.:kernels python -m benchmarks.read_back [--megabytes 1000] [--rounds 3] [--folder .]

Writes an Arrow output of random float32 vectors of 1,024 dimensions in chunks of 16 MB, and reads it back from the disk
and from the page cache. Rates are the median of the rounds. Without `posix_fadvise` both are from the cache.
"""

import statistics
import tempfile
import time
import zlib
from pathlib import Path

import click
import numpy as np
import pyarrow as pa

from benchmarks.reporting.results import environment
from fastvec.output.reader import read_output
from fastvec.output.vector_column import column_type
from fastvec.output.writer import Job, Writer
from fastvec.system.blocks import SHARE, Block, are_intact, read_back

DIMS, ROWS = 1024, 4096


@click.command()
@click.option("--megabytes", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".", show_default=True)
def main(megabytes: int, rounds: int, folder: Path) -> None:
    """Print the seconds and rates."""
    seconds: dict[str, list[float]] = {"written": [], "read back from the disk": [], "read back from the cache": []}
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        for number in range(rounds):
            output = Path(inside, f"{number}.arrow")
            seconds["written"].append(write(output, megabytes))
            blocks = blocks_of(output)
            started = time.perf_counter()
            read_back(output, blocks, wanted=True, job_seconds=0)
            seconds["read back from the disk"].append(time.perf_counter() - started)
            started = time.perf_counter()
            all(are_intact(output, blocks))
            seconds["read back from the cache"].append(time.perf_counter() - started)
            size = output.stat().st_size
            output.unlink()
    click.echo(f"{size / 1e6:,.0f} MB, {rounds} rounds, {environment()['cpu']}")
    for name, measured in seconds.items():
        median = statistics.median(measured)
        click.echo(f"{name:25} {median:7.2f} s {size / 1e6 / median:8,.0f} MB/s")
    longest = statistics.median(seconds["read back from the disk"]) / SHARE
    click.echo(f"a job of more than {longest:,.0f} s reads such an output back by default")


def write(output: Path, megabytes: int) -> float:
    """Write an output, and return the seconds that it took to publish it, without the vectors' making."""
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIMS)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIMS).cast(column_type(DIMS, "float32"))
    row = pa.field("row", pa.int64(), nullable=False)
    schema = pa.schema([row, ("embedding", column.type)], metadata=metadata_of(megabytes))
    chunks = -(-megabytes * 1_000_000 // vectors.nbytes)
    started = time.perf_counter()
    writer = Writer.open(output, Job(fingerprint={}, environment={}, limits={}))
    writer.begin(schema)
    for chunk in range(chunks):
        rows = pa.array(range(chunk * ROWS, (chunk + 1) * ROWS), pa.int64())
        batch = pa.RecordBatch.from_arrays([rows, column], schema=writer.schema)
        writer.write(batch, counts={}, errors=[], batch_tokens=0)
    writer.finish([], verify=False)
    return time.perf_counter() - started


def metadata_of(megabytes: int) -> dict[str, str]:
    """Return the least by which an output is recognized."""
    inputs = f'[{{"uri": "random", "first_row": 0, "rows": {megabytes}}}]'
    own = {"inputs": inputs, "dims": str(DIMS), "vector_dtype": "float32", "vector_column": "embedding"}
    return {f"fastvec.{name}": text for name, text in {**own, "normalize": "false"}.items()}


def blocks_of(output: Path) -> list[Block]:
    """Return the blocks of a file as they are known when it has been written: its batches and its footer."""
    blocks, size = read_output(output).blocks, output.stat().st_size
    with output.open("rb") as file:
        file.seek(blocks[-1].end_offset)
        return [*blocks, Block(rows=0, end_offset=size, crc32=zlib.crc32(file.read()))]


if __name__ == "__main__":
    main()
