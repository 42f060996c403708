"""Finds what is shown of each row: its title, the beginning of its text, and where it is.

Shapes: n rows drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from fastvec.corpus.columns import is_string
from fastvec.corpus.text_column import TEXT_NAMES
from fastvec.errors import InputError, UsageError
from fastvec.vectors.source_texts import texts_at
from fastvec.vectors.stored import Vectors

TITLES = ("title", "name", "headline", "heading", "subject", "label")
READ_CHARACTERS = 2000  # of a text, for the names of clusters
TEXTS_AT_ONCE = 10_000  # whole texts in memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    titles: tuple[str, ...]  # [n], empty for rows without one
    texts: tuple[str, ...]  # [n], at most READ_CHARACTERS of each, without the title that it begins with
    places: tuple[str, ...]  # [n], such as `row 12`
    note: str  # why the texts are not those of the inputs; empty if they are


def read_captions(vectors: Vectors, positions: npt.NDArray[np.int64], label: str | None) -> Captions:
    """Return the captions of the rows at `positions` [n].

    Titles are those of the kept column `label`, or of the one that looks like it. Texts are those of the inputs. If
    these are not there any more, the texts are the other kept columns of strings, and `note` says so.
    Raises UsageError if `label` is not a kept column.
    """
    strings = [name for name in vectors.kept if is_string(vectors.first.schema.field(name).type)]
    title = _title_column(strings) if label is None else require_kept(vectors, label, "--label")
    columns = {} if title is None else {title: _strings(vectors, positions, title)}
    try:
        texts, note = _texts(vectors, positions), ""
    except InputError as error:
        others = [name for name in strings if name != title]
        columns |= {name: _strings(vectors, positions, name) for name in others}
        rows = zip(*(columns[name] for name in others), strict=True) if others else ((),) * len(positions)
        texts = ["\n".join(filter(None, row))[:READ_CHARACTERS] for row in rows]
        instead = "kept columns" if columns else "row numbers"
        note = f"{instead} are shown instead of texts: {error}"
    titles = columns[title] if title is not None else [""] * len(positions)
    bodies = [text.removeprefix(title).strip() for text, title in zip(texts, titles, strict=True)]
    return Captions(titles=tuple(titles), texts=tuple(bodies), places=tuple(_places(vectors, positions)), note=note)


def require_kept(vectors: Vectors, name: str, option: str) -> str:
    if name not in vectors.kept:
        kept = f"the kept columns are {', '.join(vectors.kept)}" if vectors.kept else "no column was kept"
        raise UsageError(
            f"{option} {name}: {vectors.parts[0].name} has no such column, {kept}: embed with --keep {name}"
        )
    return name


def shown_values(column: pa.ChunkedArray) -> list[str]:
    """Return the values of a column [n] as text, those that are null as an empty one.

    Nanoseconds are not made Python objects, which needs pandas; those of durations are left out.
    """
    kind = column.type
    if types.is_duration(kind) and kind.unit == "ns":
        column = pc.cast(column, pa.duration("us"), safe=False)
    elif (types.is_timestamp(kind) or types.is_time64(kind)) and kind.unit == "ns":
        column = pc.replace_substring_regex(pc.cast(column, pa.string()), r"\.0+(Z|[+-]\d+)?$", r"\1")
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _title_column(strings: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(strings)}
    found = next((lower[title] for title in TITLES if title in lower), None)
    return found or next((name for name in strings if name.lower() not in TEXT_NAMES), None)


def _strings(vectors: Vectors, positions: npt.NDArray[np.int64], name: str) -> list[str]:
    return [value.strip()[:READ_CHARACTERS] for value in shown_values(vectors.take(positions, [name])[name])]


def _texts(vectors: Vectors, positions: npt.NDArray[np.int64]) -> list[str]:
    found: list[str] = []
    for begin in range(0, len(positions), TEXTS_AT_ONCE):
        texts = texts_at(vectors, positions[begin : begin + TEXTS_AT_ONCE])
        found += [(text or "")[:READ_CHARACTERS].strip() for text in texts]
    return found


def _places(vectors: Vectors, positions: npt.NDArray[np.int64]) -> list[str]:
    """Return the row of each position in the inputs, with the output's name if there are several outputs."""
    columns = vectors.take(positions, vectors.row_columns)
    rows = columns["row"].to_numpy()
    places = [f"row {row:,}" for row in rows.tolist()]
    if vectors.first.has_passages:
        numbers = columns["chunk"].to_pylist()
        places = [f"{place}, passage {number}" for place, number in zip(places, numbers, strict=True)]
    if vectors.has_several:
        places = [f"{name}, {place}" for name, place in zip(vectors.sources(positions), places, strict=True)]
    return places
