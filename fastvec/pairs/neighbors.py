"""`fastvec neighbors`: writes the k nearest rows of each row of outputs, found by comparing all of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fastvec.errors import UsageError
from fastvec.pairs.nearest import NONE, Nearest, nearest_rows
from fastvec.pairs.products import products_for
from fastvec.pairs.progress import PairCounter, PairProgress
from fastvec.pairs.tables import Gathered, RowNames, named
from fastvec.pairs.unit_blocks import least_similarity
from fastvec.vectors.result_file import require_apart, require_result_file, result_file
from fastvec.vectors.stored import open_vectors

MOST_NEIGHBORS = 10_000
_ROW, _NEIGHBOR = named("{}", "row"), named("neighbor_{}", "neighbor")


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighborsReport:
    """The report of `neighbors`: the number of lines, and of rows without a vector, which have none."""

    output: str
    k: int
    rows: int
    neighbors: int
    no_vector: int
    seconds: float

    @property
    def return_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        no_vector = f"; {self.no_vector:,} without a vector" if self.no_vector else ""
        return f"{self.neighbors:,} neighbors of {self.rows:,} rows to {self.output} in {self.seconds:.1f} s{no_vector}"


def neighbors(
    files: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    k: int = 10,
    threshold: float | None = None,
    vector_column: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Callable[[PairProgress], None] = lambda _: None,
) -> NeighborsReport:
    """Write the `k` rows of the largest cosine similarity with each row, nearest first; of equal ones, the first.

    The file has a line for each neighbor, in the order of rows: `row`, `rank` from 1, `neighbor` and `similarity`.
    A row is not its own neighbor, but one that equals it is. Rows without a vector have no lines.

    Args:
        files: One or several outputs, or folders of shards, of the same model and settings.
        output: A .parquet, .arrow or .jsonl file.
        k: How many neighbors a row has, at most.
        threshold: The least cosine similarity of a neighbor; None takes all.
        vector_column: Which vectors to compare, if the outputs have several columns of them.
        device: `cpu`, `cuda`, or `auto`: a GPU, if there is one and the rows are many.
        overwrite: Whether to replace an existing file.
        progress: Called after each block of rows.

    Raises:
        UsageError: An option cannot be used.
        OutputError: A file is not a finished output or cannot be read, or the result cannot be written.
        RefusedError: `output` exists.
    """
    started, target = time.perf_counter(), Path(output)
    if not 1 <= k <= MOST_NEIGHBORS:
        raise UsageError(f"k {k} is out of range: the minimum is 1, the maximum {MOST_NEIGHBORS:,}")
    if threshold is not None and not -1 <= threshold <= 1:
        raise UsageError(f"threshold {threshold} is out of range: a cosine similarity is from -1 to 1")
    files = [files] if isinstance(files, str | Path) else files
    require_result_file(target, overwrite=overwrite)
    with open_vectors(files, vector_column=vector_column) as vectors:
        require_apart([target], vectors.paths)
        vectors.require_intact()
        names, compared, lines = RowNames(vectors), 0, 0
        products = products_for(device, 2.0 * vectors.rows**2 * vectors.dims)
        counter = PairCounter(vectors.rows**2, progress)
        least = -np.inf if threshold is None else least_similarity(threshold, vectors.dims)
        with result_file(target, _schema(names)) as append:
            write = Gathered(append)
            for found in nearest_rows(products, vectors, vectors, k, counter, least=least):
                table = _lines(found, names)
                write(table)
                compared, lines = compared + len(found.rows), lines + table.num_rows
            write.end()
        return NeighborsReport(
            output=str(output),
            k=k,
            rows=vectors.rows,
            neighbors=lines,
            no_vector=vectors.rows - compared,
            seconds=time.perf_counter() - started,
        )


def _schema(names: RowNames) -> pa.Schema:
    rank = pa.field("rank", pa.int32(), nullable=False)
    similarity = pa.field("similarity", pa.float32(), nullable=False)
    return pa.schema([*names.fields(_ROW), rank, *names.fields(_NEIGHBOR), similarity])


def _lines(found: Nearest, names: RowNames) -> pa.Table:
    of, ranks = np.nonzero(found.positions != NONE)
    columns = [
        *names.columns(found.rows[of], _ROW).values(),
        pa.array((ranks + 1).astype(np.int32)),
        *names.columns(found.positions[of, ranks], _NEIGHBOR).values(),
        pa.array(np.minimum(found.similarities[of, ranks], np.float32(1))),
    ]
    return pa.table(columns, schema=_schema(names))
