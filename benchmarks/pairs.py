"""Measures `fastvec.dedup` and `fastvec.neighbors` against NumPy's rate of matrix products, and FAISS.

    PYTHONPATH=.:kernels python -m benchmarks.pairs [--rows 20000] [--dims 384] [--k 10] [--faiss] [--cpu-seconds]

Makes random unit vectors, a tenth of them near-duplicates of others at a cosine of about 0.98, and writes them as an
Arrow output in batches of 1,024 rows. The rate of products is that of blocks of the size that both use, one after the
other into the same memory, and nothing else. `dedup` compares n (n - 1) / 2 pairs, `neighbors` n². With
`--cpu-seconds` and OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1, shares can be compared while other processes run.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pyarrow as pa

from benchmarks.reporting.results import environment
from fastvec import dedup, neighbors
from fastvec.output.vector_column import FloatArray, column_type
from fastvec.output.writer import Job, Writer
from fastvec.pairs.products import Products

BATCH = 1024
THRESHOLD = 0.95
Clock = Callable[[], float]


@click.command()
@click.option("--rows", type=click.IntRange(min=2), default=20_000, show_default=True)
@click.option("--dims", type=click.IntRange(min=2), default=384, show_default=True)
@click.option("--k", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--faiss", "with_faiss", is_flag=True, help="Also measure FAISS's IndexFlatIP.")
@click.option("--cpu-seconds", is_flag=True, help="Measure the processor's time instead of the clock's.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".", show_default=True)
def main(rows: int, dims: int, k: int, with_faiss: bool, cpu_seconds: bool, folder: Path) -> None:
    """Print seconds, rates, and the share of the rate of products."""
    clock = time.process_time if cpu_seconds else time.perf_counter
    vectors = make_vectors(rows, dims)
    rate = product_rate(vectors, clock)
    click.echo(f"{rows:,} x {dims} float32, {environment()['cpu']}, NumPy's products: {rate / 1e9:.1f} GFLOP/s")
    pairs = rows * (rows - 1) // 2
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        output = Path(inside, "vecs.arrow")
        write(output, vectors)
        groups, nearest = Path(inside, "groups.parquet"), Path(inside, "neighbors.parquet")
        show("dedup", lambda: dedup(output, groups, threshold=THRESHOLD, device="cpu"), pairs, dims, rate, clock)
        show(f"neighbors, k={k}", lambda: neighbors(output, nearest, k=k, device="cpu"), rows**2, dims, rate, clock)
    if with_faiss:
        import faiss

        index = faiss.IndexFlatIP(dims)
        index.add(vectors)
        show("FAISS range_search", lambda: index.range_search(vectors, THRESHOLD), rows**2, dims, rate, clock)
        show(f"FAISS search, k={k}", lambda: index.search(vectors, k + 1), rows**2, dims, rate, clock)
    click.echo(f"products once more: {product_rate(vectors, clock) / 1e9:.1f} GFLOP/s")


def make_vectors(rows: int, dims: int) -> FloatArray:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((rows, dims), dtype=np.float32)
    copies = random.permutation(rows)[: rows // 10]
    vectors[copies] = vectors[random.integers(0, rows, len(copies))]
    vectors += 0.15 * random.standard_normal((rows, dims), dtype=np.float32)
    lengths: FloatArray = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths


def product_rate(vectors: FloatArray, clock: Clock) -> float:
    """Return the operations per second of products of blocks of `vectors` [n, D], over 3 s."""
    left, right = vectors[: Products.rows], vectors[: Products.columns]
    out = np.empty((len(left), len(right)), dtype=np.float32)
    rounds, started = 0, clock()
    while (seconds := clock() - started) < 3:
        np.matmul(left, right.T, out=out)
        rounds += 1
    rate: float = 2.0 * rounds * len(left) * len(right) * vectors.shape[1] / seconds
    return rate


def write(output: Path, vectors: FloatArray) -> None:
    """Write an output with the least by which one is recognized."""
    rows, dims = vectors.shape
    inputs = f'[{{"uri": "random", "first_row": 0, "rows": {rows}}}]'
    own = {"inputs": inputs, "dims": str(dims), "vector_dtype": "float32", "vector_column": "embedding"}
    metadata = {f"fastvec.{name}": text for name, text in {**own, "normalize": "true"}.items()}
    row = pa.field("row", pa.int64(), nullable=False)
    schema = pa.schema([row, ("embedding", column_type(dims, "float32"))], metadata=metadata)
    writer = Writer.open(output, Job(fingerprint={}, environment={}, limits={}))
    writer.begin(schema)
    for begin in range(0, rows, BATCH):
        some = vectors[begin : begin + BATCH]
        numbers = pa.array(range(begin, begin + len(some)), pa.int64())
        column = pa.FixedSizeListArray.from_arrays(pa.array(some.reshape(-1)), type=column_type(dims, "float32"))
        writer.write(
            pa.RecordBatch.from_arrays([numbers, column], schema=writer.schema), counts={}, errors=[], batch_tokens=0
        )
    writer.finish([], verify=False)


def show(name: str, run: Callable[[], object], pairs: int, dims: int, rate: float, clock: Clock) -> None:
    started = clock()
    run()
    seconds = clock() - started
    done = 2 * pairs * dims / seconds
    click.echo(f"{name:22} {seconds:7.2f} s {done / 1e9:7.1f} GFLOP/s {done / rate:6.0%} of the products' rate")


if __name__ == "__main__":
    main()
