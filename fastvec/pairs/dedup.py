"""`fastvec dedup`: finds near-duplicates among the rows of outputs, and says which rows to keep.

All pairs of rows are compared, in blocks over the upper triangle, and those above the threshold joined to groups.

Shapes: n rows of all outputs; m rows of the left block, b of the right block.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.errors import UsageError
from fastvec.output.vector_column import FloatArray
from fastvec.pairs.against import AgainstReport, write_near
from fastvec.pairs.components import Components
from fastvec.pairs.products import Products, products_for
from fastvec.pairs.progress import PairCounter, PairProgress
from fastvec.pairs.tables import Gathered, KeptColumns, RowNames, named, require_other_files
from fastvec.pairs.unit_blocks import Positions, UnitBlock, least_similarity, unit_blocks
from fastvec.vectors.result_file import require_apart, require_result_file, result_file
from fastvec.vectors.stored import Vectors, open_vectors, require_comparable

PAIRS_AT_ONCE = 1 << 18
_A, _B = named("{}_a", "row_a"), named("{}_b", "row_b")
_GROUP = (pa.field("group", pa.int64()), pa.field("keep", pa.bool_(), nullable=False))
WritePairs = Callable[[Positions, Positions, FloatArray], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupReport:
    """The report of `dedup`. `groups` are those of several rows, of which `largest` is the largest's number of rows.

    `pairs` is the number of pairs above the threshold, `no_vector` that of rows without a vector, which are kept.
    """

    output: str
    threshold: float
    rows: int
    kept: int
    groups: int
    largest: int
    pairs: int
    no_vector: int
    seconds: float = 0.0

    @property
    def removed(self) -> int:
        """The number of rows that are near-duplicates of a row that is kept."""
        return self.rows - self.kept

    @property
    def return_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "removed": self.removed}

    def __str__(self) -> str:
        groups = f"{self.groups:,} group{'s' * (self.groups != 1)}"
        found = f"{self.removed:,} near-duplicates in {groups} at {self.threshold:g}"
        largest = f", the largest has {self.largest:,} rows" if self.groups else ""
        no_vector = f", {self.no_vector:,} of them without a vector" if self.no_vector else ""
        return (
            f"{self.rows:,} rows to {self.output} in {self.seconds:.1f} s: {found}{largest}; "
            f"{self.kept:,} rows are kept{no_vector}"
        )


def dedup(
    files: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    threshold: float,
    pairs: str | Path | None = None,
    against: str | Path | Sequence[str | Path] = (),
    vector_column: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Callable[[PairProgress], None] = lambda _: None,
) -> DedupReport | AgainstReport:
    """Find rows whose cosine similarity with another row is at least `threshold`, and write which rows to keep.

    Two rows are in one group if they are that similar, or if a chain of such rows joins them; the first row of a group
    is kept. The file has a line for each row: the kept columns, `row`, `group` (the position of the group's first row,
    counting the rows of all `files` from 0; null without a vector) and `keep`.

    Args:
        files: One or several outputs, or folders of shards, of the same model and settings.
        output: A .parquet, .arrow or .jsonl file.
        threshold: A cosine similarity above 0, up to 1. Rounding errors of float32, 8 √D 2⁻²⁴, do not count.
        pairs: A file of the same formats for all pairs that are that similar: `row_a`, `row_b` and `similarity`.
        against: Outputs to compare with instead: rows near one of theirs are not kept, and instead of `group` there are
            `nearest`, the most similar of their rows, and `similarity`.
        vector_column: Which vectors to compare, if the outputs have several columns of them.
        device: `cpu`, `cuda`, or `auto`: a GPU, if there is one and the rows are many.
        overwrite: Whether to replace existing files.
        progress: Called after each block of rows.

    Raises:
        UsageError: An option cannot be used, or a file is one of `files` and of `against`.
        OutputError: A file is not a finished output or cannot be read, or the result cannot be written.
        RefusedError: `output` or `pairs` exists.
    """
    started = time.perf_counter()
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold {threshold} is out of range: a cosine similarity above 0, up to 1")
    files, others = _listed(files), _listed(against)
    if others and pairs is not None:
        raise UsageError("--pairs are those within one set of rows: leave it or --against out")
    targets = [Path(path) for path in (output, pairs) if path is not None]
    for target in targets:
        require_result_file(target, overwrite=overwrite)
    with ExitStack() as opened:
        vectors = opened.enter_context(open_vectors(files, vector_column=vector_column))
        names = RowNames(vectors)
        report: DedupReport | AgainstReport
        if others:
            other = opened.enter_context(open_vectors(others, vector_column=vector_column))
            require_apart(targets, [*vectors.paths, *other.paths])
            require_other_files(vectors, other)
            require_comparable(vectors.parts[0], other.parts[0])
            both = names, RowNames(other)
            report = write_near(targets[0], vectors, other, both, threshold, device, progress)
        else:
            require_apart(targets, vectors.paths)
            report = _dedup(targets, vectors, names, threshold, device, progress)
    return replace(report, seconds=time.perf_counter() - started)


def _listed(files: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return [files] if isinstance(files, str | Path) else files


def _dedup(
    targets: Sequence[Path],
    vectors: Vectors,
    names: RowNames,
    threshold: float,
    device: str,
    progress: Callable[[PairProgress], None],
) -> DedupReport:
    vectors.require_intact()
    total, least = vectors.rows * (vectors.rows - 1) // 2, least_similarity(threshold, vectors.dims)
    products, counter = products_for(device, 2.0 * total * vectors.dims), PairCounter(total, progress)
    kept = KeptColumns(vectors, names, [field.name for field in _GROUP])
    components, has_vector = Components(vectors.rows), np.zeros(vectors.rows, dtype=np.bool_)
    with ExitStack() as opened:
        write = Gathered(opened.enter_context(result_file(targets[0], pa.schema([*kept.schema, *_GROUP]))))
        write_pairs = _pair_writer(opened, targets[1], names) if len(targets) > 1 else None
        found = _join_pairs(products, vectors, components, has_vector, least, counter, write_pairs)
        roots = components.roots(np.arange(vectors.rows))

        def columns(where: slice) -> list[pa.Array]:
            own = roots[where]
            keep = own == np.arange(where.start, where.stop)
            return [pa.array(own, mask=~has_vector[where]), pa.array(keep)]

        kept.stream(_GROUP, columns, write)
        write.end()
    sizes = np.bincount(roots)
    return DedupReport(
        output=str(targets[0]),
        threshold=threshold,
        rows=vectors.rows,
        kept=int(np.count_nonzero(sizes)),
        groups=int(np.count_nonzero(sizes > 1)),
        largest=int(sizes.max(initial=0)),
        pairs=found,
        no_vector=vectors.rows - int(has_vector.sum()),
    )


def _pair_writer(opened: ExitStack, target: Path, names: RowNames) -> WritePairs:
    similarity = pa.field("similarity", pa.float32(), nullable=False)
    schema = pa.schema([*names.fields(_A), *names.fields(_B), similarity])
    gathered = Gathered(opened.enter_context(result_file(target, schema)))
    opened.callback(gathered.end)

    def write(a: Positions, b: Positions, similarities: FloatArray) -> None:
        columns = {**names.columns(a, _A), **names.columns(b, _B)}
        gathered(pa.table([*columns.values(), pa.array(np.minimum(similarities, np.float32(1)))], schema=schema))

    return write


def _join_pairs(
    products: Products,
    vectors: Vectors,
    components: Components,
    has_vector: npt.NDArray[np.bool_],
    least: np.float32,
    counter: PairCounter,
    write_pairs: WritePairs | None,
) -> int:
    """Join all pairs of rows that are `least` similar, and note in `has_vector` [n] which rows have a vector.

    Returns the number of pairs.
    """
    found, below = 0, float(np.nextafter(least, np.float32(-np.inf), dtype=np.float32))
    for left in unit_blocks(vectors, products.rows):
        has_vector[left.positions] = True
        held, places = products.put(left.vectors), products.put(left.positions)
        for right in unit_blocks(vectors, products.columns, begin=int(left.positions[0])):
            rows = int(np.searchsorted(left.positions, right.positions[-1]))  # the later ones were compared before
            if rows == 0:  # the last row with itself
                continue
            scores = products.similarities(held[:rows], products.put(right.vectors))
            first = int(np.searchsorted(left.positions, right.positions[0]))
            if first < rows:
                same_or_later = places[first:rows, None] >= products.put(right.positions)[None]
                scores[first:rows][same_or_later] = -np.inf
            mask = products.above(scores, below)
            count = products.count(mask)
            if count:
                _join(products, left, right, scores, mask, count, components, write_pairs)
            found += count
            counter.add(rows * len(right))
    return found


def _join(
    products: Products,
    left: UnitBlock,
    right: UnitBlock,
    scores: Any,
    mask: Any,
    count: int,
    components: Components,
    write_pairs: WritePairs | None,
) -> None:
    """Join the `count` pairs of two blocks where `mask` [m, b] is true.

    Where they are many, few rows are joined at a time, and pairs that are in one group already are dropped before they
    are listed: thousands of equal rows have millions of pairs.
    """
    many = count > PAIRS_AT_ONCE
    step = max(PAIRS_AT_ONCE // len(right), 1) if many else len(mask)
    for begin in range(0, len(mask), step):
        own, rows = mask[begin : begin + step], left.positions[begin : begin + min(step, len(mask) - begin)]
        if many and write_pairs is None:
            roots = products.put(components.roots(rows)), products.put(components.roots(right.positions))
            own = own & (roots[0][:, None] != roots[1][None])
        of, columns, similarities = products.pairs(scores[begin : begin + step], own)
        a, b = rows[of], right.positions[columns]
        components.join(a, b)
        if write_pairs is not None:
            write_pairs(a, b, similarities)
