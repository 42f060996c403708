"""`fastvec dedup --against`: finds the rows that are near another set of rows, such as those of a test set."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fastvec.pairs.nearest import NONE, nearest_rows
from fastvec.pairs.products import products_for
from fastvec.pairs.progress import PairCounter, PairProgress
from fastvec.pairs.tables import Gathered, KeptColumns, RowNames, named
from fastvec.pairs.unit_blocks import least_similarity
from fastvec.vectors.result_file import result_file
from fastvec.vectors.stored import Vectors

_NEAREST = named("nearest_{}", "nearest")


@dataclass(frozen=True, kw_only=True, slots=True)
class AgainstReport:
    """The report of `dedup` with `against`, whose rows are `other_rows`.

    `no_vector` is the number of rows without a vector, which are kept.
    """

    output: str
    threshold: float
    rows: int
    kept: int
    other_rows: int
    no_vector: int
    seconds: float = 0.0

    @property
    def removed(self) -> int:
        """The number of rows that are near another one."""
        return self.rows - self.kept

    @property
    def return_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "removed": self.removed}

    def __str__(self) -> str:
        no_vector = f", {self.no_vector:,} of them without a vector" if self.no_vector else ""
        return (
            f"{self.rows:,} rows to {self.output} in {self.seconds:.1f} s: {self.removed:,} are near one of "
            f"{self.other_rows:,} others at {self.threshold:g}; {self.kept:,} rows are kept{no_vector}"
        )


def write_near(
    target: Path,
    vectors: Vectors,
    others: Vectors,
    names: tuple[RowNames, RowNames],
    threshold: float,
    device: str,
    progress: Callable[[PairProgress], None],
) -> AgainstReport:
    """Write the nearest of `others` for each row, and whether it is less similar than `threshold` and kept.

    `names` are those of `vectors` and `others`. Raises OutputError.
    """
    for one in (vectors, others):
        one.require_intact()
    fields = [
        *names[1].fields(_NEAREST),
        pa.field("similarity", pa.float32()),
        pa.field("keep", pa.bool_(), nullable=False),
    ]
    total, least = vectors.rows * others.rows, least_similarity(threshold, vectors.dims)
    products, counter = products_for(device, 2.0 * total * vectors.dims), PairCounter(total, progress)
    kept = KeptColumns(vectors, names[0], [field.name for field in fields])
    nearest = np.full(vectors.rows, NONE, dtype=np.int64)
    similarities = np.full(vectors.rows, -np.inf, dtype=np.float32)
    no_vector = vectors.rows
    with result_file(target, pa.schema([*kept.schema, *fields])) as append:
        for found in nearest_rows(products, vectors, others, 1, counter):
            nearest[found.rows], similarities[found.rows] = found.positions[:, 0], found.similarities[:, 0]
            no_vector -= len(found.rows)

        def columns(where: slice) -> list[pa.Array]:
            own = nearest[where]
            shown = pa.array(np.minimum(similarities[where], np.float32(1)), mask=own == NONE)
            return [*names[1].columns(own, _NEAREST).values(), shown, pa.array(similarities[where] < least)]

        write = Gathered(append)
        kept.stream(fields, columns, write)
        write.end()
    return AgainstReport(
        output=str(target),
        threshold=threshold,
        rows=vectors.rows,
        kept=int(np.count_nonzero(similarities < least)),
        other_rows=others.rows,
        no_vector=no_vector,
    )
