"""Measures exact search against the rates of the memory and of matrix products, NumPy and FAISS, in one run.

    PYTHONPATH=.:kernels python -m benchmarks.search [--rows 1000000] [--dims 384] [--rounds 3] [--folder .]

fastvec searches an output of random unit vectors on the disk, which the page cache holds; the others an array in
memory. *Rate* is that of the bytes of all vectors for one query (read once), and of the products' operations for more;
its ceiling is a matrix product of the same shapes in the same blocks, by NumPy, of which nothing is kept. Every
contestant must find the same rows, up to rounding.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.reporting.results import environment, write_json
from fastvec.output.vector_column import VectorDtype, ranges_of, ranges_to_json, to_column
from fastvec.output.writer import Job, Writer
from fastvec.retrieval.exact import best_rows, block_rows
from fastvec.system.durable_files import forget_cached
from fastvec.vectors.stored import open_vectors

Array = npt.NDArray[np.float32]
Contestant = Callable[[Array], npt.NDArray[np.int64]]
K, CHUNK_ROWS, FAISS_BLAS = 10, 8192, 20
SAME = 0.99  # of the rows, in order: sums in another order round differently, which swaps rows that are as near
FINGERPRINT: dict[str, Any] = {"inputs": []}


@click.command()
@click.option("--rows", type=click.IntRange(min=100), default=1_000_000, show_default=True)
@click.option("--dims", type=click.IntRange(min=8), default=384, show_default=True)
@click.option("--queries", type=click.IntRange(min=1), multiple=True, default=(1, 32, 256), show_default=True)
@click.option("--vector-dtype", "dtype", type=click.Choice(["float32", "float16", "int8", "binary"]), default="float32")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".", show_default=True)
@click.option("--streamed", is_flag=True, help="Hold no array; fastvec alone, from the disk, with its memory.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A JSON file of the results.")
def main(
    rows: int,
    dims: int,
    queries: tuple[int, ...],
    dtype: VectorDtype,
    rounds: int,
    folder: Path,
    streamed: bool,
    output: Path | None,
) -> None:
    """Print the median seconds of each contestant, and its share of the ceiling."""
    random = np.random.default_rng(0)
    click.echo(f"{rows:,} rows of {dims} {dtype} values; {environment()['cpu']}")
    found = []
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        path = Path(inside, "vecs.arrow")
        if streamed:
            write(path, chunks_of(rows, dims), dtype)
            for count in queries:
                search_streamed(path, unit(random.standard_normal((count, dims), dtype=np.float32)))
            return
        array = unit(random.standard_normal((rows, dims), dtype=np.float32))
        write(path, (array[begin : begin + CHUNK_ROWS] for begin in range(0, rows, CHUNK_ROWS)), dtype)
        with open_vectors([path]) as vectors:
            for count in queries:
                some = unit(random.standard_normal((count, dims), dtype=np.float32))
                step = block_rows(vectors, count)
                contestants: dict[str, Contestant] = {
                    "ceiling": partial(products, array, step),
                    "fastvec": lambda given: best_rows(vectors, given, K).positions,
                    "NumPy": partial(by_numpy, array, step),
                    **dict(by_faiss(array)),
                }
                found += measure(contestants, some, rounds, exact=dtype == "float32", size=array.nbytes)
    if output is not None:
        write_json(output, {"environment": environment(), "rows": rows, "dims": dims, "dtype": dtype, "results": found})


def unit(vectors: Array) -> Array:
    scaled: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def chunks_of(rows: int, dims: int) -> Iterator[Array]:
    for begin in range(0, rows, CHUNK_ROWS):
        random = np.random.default_rng(begin)
        yield unit(random.standard_normal((min(CHUNK_ROWS, rows - begin), dims), dtype=np.float32))


def search_streamed(path: Path, queries: Array) -> None:
    """Print how long a search takes from the disk and again, and the anonymous memory that it takes at most."""
    forget_cached(path)
    with open_vectors([path]) as vectors:
        for where in ("from the disk", "again"):
            before, peak = anonymous_bytes(), 0

            def look(_: int) -> None:
                nonlocal peak
                peak = max(peak, anonymous_bytes())

            started = time.perf_counter()
            best_rows(vectors, queries, K, progress=look)
            seconds = time.perf_counter() - started
            size = path.stat().st_size / 1e9
            memory = f"{max(peak - before, 0) / 2**20:.0f} MiB more of anonymous memory than before"
            click.echo(f"{len(queries)} queries {where}: {seconds:.2f} s, {size / seconds:.1f} GB/s; {memory}")


def anonymous_bytes() -> int:
    """Return the memory of this process that is not mapped from a file (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def write(path: Path, chunks: Iterator[Array], dtype: VectorDtype) -> None:
    """Write an output with the least metadata by which it is recognized."""
    begin, ranges = 0, None
    writer = Writer.open(path, Job(fingerprint=FINGERPRINT, environment={}, limits={}))
    for some in chunks:
        if begin == 0 and dtype == "int8":
            ranges = ranges_of(some)
        column = to_column(some, np.ones(len(some), dtype=np.bool_), dtype, ranges)
        if begin == 0:
            own = {
                "inputs": "[]",
                "dims": str(some.shape[1]),
                "vector_dtype": dtype,
                "vector_column": "embedding",
                "normalize": "true",
                "fingerprint": json.dumps(FINGERPRINT),
                **({} if ranges is None else {"ranges": ranges_to_json(ranges)}),
            }
            fields = [pa.field("row", pa.int64(), nullable=False), ("embedding", column.type)]
            writer.begin(pa.schema(fields, metadata={f"fastvec.{name}": text for name, text in own.items()}))
        numbers = pa.array(np.arange(begin, begin + len(some)))
        batch = pa.RecordBatch.from_arrays([numbers, column], schema=writer.schema)
        writer.write(batch, counts={}, errors=[], batch_tokens=0)
        begin += len(some)
    writer.finish([], verify=False)


def products(array: Array, step: int, queries: Array) -> npt.NDArray[np.int64]:
    """Compute the products alone, into the same memory."""
    out = np.empty((len(queries), step), dtype=np.float32)
    for begin in range(0, len(array), step):
        some = array[begin : begin + step]
        if len(queries) == 1:
            np.dot(some, queries[0], out=out[0, : len(some)])
        else:
            np.matmul(queries, some.T, out=out[:, : len(some)] if len(some) == step else None)
    return np.zeros((len(queries), 0), dtype=np.int64)


def by_numpy(array: Array, step: int, queries: Array) -> npt.NDArray[np.int64]:
    """The usual loop: a product, `argpartition`, and the best of all blocks sorted."""
    scores, rows = [], []
    for begin in range(0, len(array), step):
        block = queries @ array[begin : begin + step].T
        best = np.argpartition(block, -min(K, block.shape[1]), axis=1)[:, -K:]
        scores.append(np.take_along_axis(block, best, axis=1))
        rows.append(best + begin)
    order = np.argsort(-np.concatenate(scores, axis=1), axis=1)[:, :K]
    return np.take_along_axis(np.concatenate(rows, axis=1), order, axis=1)


def by_faiss(array: Array) -> Iterator[tuple[str, Contestant]]:
    """FAISS's flat index: as it is, and with matrix products from one query on."""
    import faiss

    index = faiss.IndexFlatIP(array.shape[1])
    index.add(array)
    threshold = faiss.cvar.distance_compute_blas_threshold

    def search(queries: Array, least: int) -> npt.NDArray[np.int64]:
        faiss.cvar.distance_compute_blas_threshold = least
        found: npt.NDArray[np.int64] = index.search(queries, K)[1]
        return found

    yield "FAISS flat", lambda queries: search(queries, threshold)
    yield "FAISS flat, BLAS", lambda queries: search(queries, FAISS_BLAS)


def measure(
    contestants: dict[str, Contestant], queries: Array, rounds: int, *, exact: bool, size: int
) -> list[dict[str, Any]]:
    """Run each contestant in each round, print the medians, and return them."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    expected: npt.NDArray[np.int64] | None = None
    for _ in range(rounds + 1):  # the first one warms up
        for name, contestant in contestants.items():
            started = time.perf_counter()
            rows = contestant(queries)
            seconds[name].append(time.perf_counter() - started)
            if exact and name != "ceiling":
                expected = rows if expected is None else expected
                if np.mean(rows == expected) < SAME:
                    raise click.ClickException(f"{name} finds other rows than fastvec")
    ceilings, results = seconds["ceiling"][1:], []
    operations = 2 * len(queries) * size / 4
    for name, measured in seconds.items():
        shares = [one / other for one, other in zip(ceilings, measured[1:], strict=True)]
        median = statistics.median(measured[1:])
        rate = f"{size / 1e9 / median:6.1f} GB/s" if len(queries) == 1 else f"{operations / 1e9 / median:6.0f} GFLOP/s"
        share = f"{statistics.median(shares):4.0%} of the ceiling ({min(shares):.0%} to {max(shares):.0%})"
        click.echo(f"{len(queries):5} queries  {name:17} {median * 1e3:9.1f} ms  {rate}  {share}")
        results.append({"queries": len(queries), "contestant": name, "seconds": measured[1:], "share": shares})
    return results


if __name__ == "__main__":
    main()
