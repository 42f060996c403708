"""Outputs with chosen vectors and kept columns, and drawings, for the tests of maps."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.maps.captions import Captions
from fastvec.maps.drawing import Coloring, Drawing, Label
from tests.helpers.outputs import make_schema, write_output

HOSTILE = (
    "</script><script>window.attacked = 1</script>",
    "<img src=x onerror='window.attacked = 2'>",
    "<!--<script>",
    "]]> \" ' & &lt;b&gt; \\u003c \u2028 $\\frac{1}$ @text $index {{data}}",
)


def unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    scaled: npt.NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def random_vectors(rows: int, dims: int = 8, seed: int = 0) -> npt.NDArray[np.float32]:
    return unit(np.random.default_rng(seed).standard_normal((rows, dims)))


def write_vectors(
    path: Path, vectors: npt.NDArray[np.float32], *, missing: tuple[int, ...] = (), first: int = 0, **kept: pa.Array
) -> Path:
    """Write a finished output of `vectors` [n, D], in batches of 5 rows; the rows `missing` have none."""
    schema = make_schema(dims=vectors.shape[1])
    mask = np.isin(np.arange(len(vectors)), missing)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1], mask=pa.array(mask))
    columns = {
        **kept,
        "row": pa.array(np.arange(first, first + len(vectors))),
        "embedding": column.cast(schema.field("embedding").type),
    }
    fields = [schema.field(name) if name in ("row", "embedding") else (name, kept[name].type) for name in columns]
    batch = pa.record_batch(list(columns.values()), schema=pa.schema(fields, metadata=schema.metadata))
    write_output(path, [batch.slice(begin, 5) for begin in range(0, len(vectors), 5)], nulls=len(missing))
    return path


def make_drawing(texts: tuple[str, ...], **changes: object) -> Drawing:
    """Make a drawing of points on a diagonal; every string of it is one of `texts`."""
    n = len(texts)
    fields = {
        "title": texts[0],
        "subtitle": texts[0],
        "points": np.repeat(np.arange(n, dtype=np.float64)[:, None], 2, axis=1),
        "captions": Captions(titles=texts, texts=texts, places=texts, note=""),
        "coloring": Coloring(
            column=texts[0], palette=("#4e79a7", "#f28e2b"), of_points=np.arange(n) % 2, names=texts[:2], counts=(1, 1)
        ),
        "labels": tuple(Label(x=i, y=i, is_above=True, text=text, color="#000000") for i, text in enumerate(texts)),
    }
    return Drawing(**{**fields, **changes})  # type: ignore[arg-type]
