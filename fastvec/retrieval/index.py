"""Writes an approximate index of finished outputs with FAISS or Lance, for those who search with them.

    FAISS   one file; an id is a position over all outputs. Flat, HNSW or IVF, by the number of vectors
    Lance   the dataset that `fastvec convert` writes, with an index IVF_FLAT

The index then searches for sampled vectors, and what it finds is compared with exact search.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from math import isqrt
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.errors import OutputError, UsageError
from fastvec.output.convert import lance_dataset, require_replaceable, require_replaceable_dataset
from fastvec.output.verify import open_intact
from fastvec.retrieval.exact import NONE, Positions
from fastvec.retrieval.progress import IndexProgress
from fastvec.retrieval.recall import SEARCHED, Neighbours, PresentVectors, least_effort
from fastvec.system.durable_files import replacing, translated_os_errors
from fastvec.vectors.query_encoder import query_settings
from fastvec.vectors.stored import Vectors, open_vectors

IndexKind = Literal["faiss", "lance"]
INDEX_KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
FEWEST_VECTORS = 1000  # fewer are all compared, which takes less than a millisecond
# Up to so many bytes of float32 vectors, FAISS writes a graph (HNSW), which is the fastest to search, but takes more
# memory than the vectors and minutes to build; above, lists of bytes (IVF, SQ8), a quarter of the size.
HNSW_BYTES = 2 << 30
# Of a list, for k-means; FAISS warns below 39. 40 vectors for each of 4 sqrt(n) lists are fewer bytes than the index
# from 400,000 vectors on.
TRAINED_VECTORS = 40
EF_SEARCH = (16, 1024)  # the least and the most that is tried
LANCE_METRICS = {"cosine": "cosine", "dot": "dot", "euclidean": "l2"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Index:
    index: str
    metric: str
    setting: dict[str, int] = field(default_factory=dict)
    recall: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenIndex:
    """The report of an index. `setting` is FAISS's efSearch or nprobe, or Lance's nprobes, with which it has `recall`.

    `recall` is that of the 10 nearest rows of 100 of the vectors; None if all vectors are compared with a query.
    """

    output: str
    vectors: int
    without_vector: int
    index: str
    metric: str
    size_bytes: int
    setting: dict[str, int]
    recall: float | None

    @property
    def return_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        size = f"{self.size_bytes / 1e6:,.1f} MB"
        found = "".join(f", recall@10 {self.recall:.3f} at {name} {value}" for name, value in self.setting.items())
        missing = f"; {self.without_vector:,} rows have no vector" if self.without_vector else ""
        return f"{self.output}: {self.vectors:,} vectors, {self.index} ({self.metric}){found}, {size}{missing}"


def write_index(
    files: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    kind: IndexKind,
    model: str | Path | None = None,
    adapters: Sequence[str | Path] = (),
    vector_column: str | None = None,
    overwrite: bool = False,
    progress: Callable[[IndexProgress], None] = lambda _: None,
) -> WrittenIndex:
    """Write an approximate index of finished outputs with another library.

    Args:
        files: One or several outputs, or folders of shards, of the same model and settings; for Lance one file.
        output: A .faiss file, or a .lance folder.
        kind: `faiss` or `lance`.
        model, adapters: Where the model that made the vectors is, if not where the output says. It says how vectors
            are compared.
        vector_column: Which vectors to index, if there are several columns of them.
        overwrite: Whether to replace `output`.
        progress: Called after each block of rows that is added to a FAISS index.

    Raises:
        UsageError: An option cannot be used, or the vectors cannot be indexed so.
        ModelError: The model is not there, or is another.
        OutputError: The library is missing, a file is no finished output, or `output` cannot be written.
        RefusedError: `output` exists.
    """
    target = Path(output)
    if kind not in INDEX_KINDS:
        raise UsageError(f"there is no index {kind!r}: choose {' or '.join(INDEX_KINDS)}")
    if target.suffix != f".{kind}":
        raise OutputError(f"{output} does not end in .{kind}: give the index such a name")
    given = [files] if isinstance(files, str | Path) else files
    require = require_replaceable if kind == "faiss" else require_replaceable_dataset
    with translated_os_errors(target):
        require(target, overwrite=overwrite)
    with translated_os_errors(target), open_vectors(given, vector_column=vector_column) as vectors:
        settings = query_settings(vectors.first, model=model, adapters=adapters, device="cpu")
        vectors.require_intact()
        present = _indexable(vectors, kind, settings.checkpoint)
        found = _write_lance(present, target, overwrite) if kind == "lance" else _write_faiss(present, target, progress)
    return WrittenIndex(
        output=str(output),
        vectors=present.count,
        without_vector=vectors.rows - present.count,
        size_bytes=sum(file.stat().st_size for file in (target, *target.rglob("*")) if file.is_file()),
        **asdict(found),
    )


def _indexable(vectors: Vectors, kind: IndexKind, checkpoint: Checkpoint) -> PresentVectors:
    name = vectors.parts[0].name
    if vectors.dtype == "binary":
        raise UsageError(f"{name} has binary vectors, which are not indexed: fastvec search is fast for them")
    if kind == "lance" and vectors.dtype == "int8":
        raise UsageError(f"{name} has int8 vectors, for which Lance has no index: use --index faiss")
    if kind == "lance" and len(vectors.parts) > 1:
        raise UsageError(f"a Lance dataset is made of one file, not of {len(vectors.parts)}: fastvec merge them first")
    function = checkpoint.similarity
    if function == "manhattan":
        raise UsageError(f"{checkpoint.name} compares by Manhattan distance, which {kind} does not index")
    present = PresentVectors.of(vectors, function)
    if present.count == 0:
        raise OutputError(f"{name} has no vectors: there is nothing to index")
    return present


def _write_faiss(present: PresentVectors, target: Path, progress: Callable[[IndexProgress], None]) -> _Index:
    try:
        import faiss
    except ImportError as error:
        raise OutputError("FAISS indexes need the package faiss-cpu: pip install 'fastvec[faiss]'") from error
    dims, name = present.vectors.dims, _faiss_name(present)
    with replacing(target) as fd:
        # an IVF has ids itself
        key = name if name.startswith("IVF") else f"IDMap,{name}"
        euclidean = present.function == "euclidean"
        index = faiss.index_factory(dims, key, faiss.METRIC_L2 if euclidean else faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(present.sample(TRAINED_VECTORS * _lists(present.count))[1])
        for positions, values in present.blocks():
            index.add_with_ids(values, positions)
            progress(IndexProgress(done=int(positions[-1]) + 1, total=present.vectors.rows))
        found = _tuned(faiss.ParameterSpace(), index, present, name)
        with os.fdopen(os.dup(fd), "wb") as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
    return found


def _faiss_name(present: PresentVectors) -> str:
    if present.count < FEWEST_VECTORS:
        return "Flat"
    if 4 * present.vectors.dims * present.count <= HNSW_BYTES:
        return "HNSW32"
    return f"IVF{_lists(present.count)},SQ8"


def _lists(count: int) -> int:
    """Return the number of lists of an IVF: the power of two below 4 sqrt(n), of those that can be trained."""
    return _power_of_two(min(4 * isqrt(count), count // TRAINED_VECTORS))


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def _tuned(space: Any, index: Any, present: PresentVectors, name: str) -> _Index:
    """Set how hard a FAISS index searches, which is written with it."""
    if name == "Flat":
        return _Index(index=name, metric=present.function)
    neighbours = Neighbours.of(present)
    parameter, first, last = ("efSearch", *EF_SEARCH) if name == "HNSW32" else ("nprobe", 1, _lists(present.count))

    def measure(setting: int) -> float:
        space.set_index_parameter(index, parameter, setting)
        return neighbours.recall(index.search(neighbours.queries, SEARCHED)[1])

    setting, recall = least_effort(first, last, measure)
    space.set_index_parameter(index, parameter, setting)
    return _Index(index=name, metric=present.function, setting={parameter: setting}, recall=recall)


def _write_lance(present: PresentVectors, target: Path, overwrite: bool) -> _Index:
    metric = LANCE_METRICS[present.function]
    with lance_dataset(open_intact(present.vectors.first.path), target, overwrite=overwrite) as table:
        if present.count < FEWEST_VECTORS:
            return _Index(index=f"no index below {FEWEST_VECTORS:,}", metric=metric)
        from lancedb.index import IvfFlat

        lists = _power_of_two(isqrt(present.count))
        config = IvfFlat(distance_type=metric, num_partitions=lists, sample_rate=TRAINED_VECTORS)
        table.create_index(present.vectors.column, config=config)
        neighbours = Neighbours.of(present)
        search = _LanceSearch(table, present.vectors, neighbours, metric)
        setting, recall = least_effort(1, lists, lambda nprobes: neighbours.recall(search(nprobes)))
    return _Index(index="IVF_FLAT", metric=metric, setting={"nprobes": setting}, recall=recall)


class _LanceSearch:
    """Searches a Lance table for the sampled vectors. A row of it has a row number, not a position."""

    def __init__(self, table: Any, vectors: Vectors, neighbours: Neighbours, metric: str) -> None:
        self._table, self._column, self._metric = table, vectors.column, metric
        self._queries, self._row_columns = neighbours.queries, vectors.row_columns
        positions = np.unique([*neighbours.positions, *chain.from_iterable(neighbours.nearest)]).astype(np.int64)
        self._position_of = dict(zip(self._keys(vectors.take(positions, self._row_columns)), positions, strict=True))

    def _keys(self, rows: pa.Table) -> list[tuple[int, ...]]:
        return list(zip(*(rows[name].to_pylist() for name in self._row_columns), strict=True))

    def __call__(self, nprobes: int) -> Positions:
        """Return the positions that are found [q, 11], best first; -1 for rows that are not among the nearest."""
        found = np.full((len(self._queries), SEARCHED), NONE, dtype=np.int64)
        columns = [*self._row_columns, "_distance"]  # Lance warns if the distance is not asked for
        for positions, query in zip(found, self._queries, strict=True):
            search = self._table.search(query, vector_column_name=self._column).distance_type(self._metric)
            rows = search.nprobes(nprobes).limit(SEARCHED).select(columns).to_arrow()
            positions[: len(rows)] = [self._position_of.get(key, NONE) for key in self._keys(rows)]
        return found
