"""What a search found: a table, and how it is printed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fastvec.errors import UsageError, printable
from fastvec.output.reader import PASSAGE_COLUMNS
from fastvec.retrieval.exact import NONE, Best
from fastvec.vectors.result_file import json_rows
from fastvec.vectors.source_texts import texts_at
from fastvec.vectors.stored import Vectors, renamed

FILE = "file"
TEXT = "text"
PASSAGE = tuple(name for name, _ in PASSAGE_COLUMNS)
SHOWN_CHARACTERS = 160  # of a value
DIGITS = 6  # of a score in JSON; float32 has seven


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What is shown of a row: its kept `columns`, and its text if `with_text`."""

    columns: tuple[str, ...]
    with_text: bool


def choose_shown(vectors: Vectors, keep: Sequence[str] | None, text: bool | None) -> Shown:
    """Return what to show: the kept columns `keep`, None for all; the text by default if there are no such columns.

    Raises UsageError for a column that the outputs do not have.
    """
    for name in keep or ():
        if name not in vectors.kept:
            known = ", ".join(vectors.kept) or "none"
            raise UsageError(f"there is no kept column {name!r}: {vectors.parts[0].name} has {known}")
    columns = vectors.kept if keep is None else tuple(dict.fromkeys(keep))
    return Shown(columns=columns, with_text=not columns if text is None else text)


def hits_schema(vectors: Vectors, shown: Shown) -> pa.Schema:
    """Return the schema of the hits: query, rank, score, file if there are several, row, and what is shown.

    A kept column that is named as one of the others becomes `kept_NAME`.
    """
    schema = vectors.schema
    own = [
        pa.field("query", pa.int64(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        *([pa.field(FILE, pa.string())] if vectors.has_several else []),
        *(schema.field(name) for name in vectors.row_columns),
    ]
    text = [pa.field(TEXT, pa.string())] if shown.with_text else []
    new = renamed(shown.columns, {field.name for field in (*own, *text)})
    kept = [schema.field(name).with_name(other) for name, other in zip(shown.columns, new, strict=True)]
    return pa.schema([*own, *kept, *text])


def hits_of(vectors: Vectors, best: Best, shown: Shown, first_query: int = 0) -> pa.Table:
    """Return a table of what was found, by query and rank, which count from `first_query` and 1.

    Raises InputError if the texts are to be shown and cannot be read.
    """
    queries, ranks = np.nonzero(best.positions != NONE)
    positions = best.positions[queries, ranks]
    rows = vectors.take(positions, [*vectors.row_columns, *shown.columns])
    columns: list[Any] = [
        queries.astype(np.int64) + first_query,
        ranks.astype(np.int32) + np.int32(1),
        best.scores[queries, ranks],
        *([vectors.sources(positions)] if vectors.has_several else []),
        *rows.columns,
        *([texts_at(vectors, positions)] if shown.with_text else []),
    ]
    return pa.table(columns, schema=hits_schema(vectors, shown))


@dataclass(frozen=True, slots=True)
class SearchReport:
    """The report of a search. `hits` has a row for each hit, by query and rank; None if they were written to a file.

    `seconds` is the time to search, with the model loaded.
    """

    queries: list[str]
    rows: int
    similarity: str
    seconds: float
    hits: pa.Table | None
    output: str | None

    @property
    def return_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        common = {"rows": self.rows, "similarity": self.similarity, "seconds": self.seconds}
        if self.hits is None:
            return {"queries": len(self.queries), "output": self.output, **common}
        found: list[dict[str, Any]] = [{"query": query, "hits": []} for query in self.queries]
        for hit in json_rows(self.hits):
            query = hit.pop("query")
            found[query]["hits"].append({**hit, "score": round(hit["score"], DIGITS)})
        return {"queries": found, **common}

    def __str__(self) -> str:
        if self.hits is None:
            queries = "query" if len(self.queries) == 1 else "queries"
            count = f"{len(self.queries):,} {queries} against {self.rows:,} vectors"
            return f"{count} in {self.seconds:.1f} s; hits in {self.output}"
        lines: list[str] = []
        of_query: dict[int, list[dict[str, Any]]] = {}
        for hit in json_rows(self.hits):
            of_query.setdefault(hit["query"], []).append(hit)
        for number, query in enumerate(self.queries):
            if len(self.queries) > 1:
                lines += [""] * bool(lines) + [printable(query)]
            lines += _lines(of_query.get(number, [])) or ["no row has a vector and passes the filter"]
        return "\n".join(lines)


def _lines(hits: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of hits: score, output if there are several, row and columns; the text is on a line of its own.

    If rows are passages, three columns after the row number them; the first follows the row, after a colon.
    """
    cells, texts = [], []
    for hit in hits:
        names = [name for name in hit if name != TEXT or hit[name] is None]
        after = names.index("row") + 1
        has_passage = tuple(names[after : after + len(PASSAGE)]) == PASSAGE
        row = f"{hit['row']}:{hit[PASSAGE[0]]}" if has_passage else str(hit["row"])
        shown = [_short(hit[name]) for name in names[after + has_passage * len(PASSAGE) :]]
        cells.append([f"{hit['score']:.3f}", *([_short(hit[FILE])] if FILE in names[:after] else []), row, *shown])
        texts.append(["      " + _short(hit[TEXT])] if hit.get(TEXT) is not None else [])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]) - 1)] if cells else []
    lines = ["  ".join(["", *map(str.ljust, row, widths), row[-1]]) for row in cells]
    return [one for line, text in zip(lines, texts, strict=True) for one in (line, *text)]


def _short(value: Any) -> str:
    text = printable(" ".join(str(value).split())) if value is not None else "-"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
