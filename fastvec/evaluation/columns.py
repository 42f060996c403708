"""Reads the columns of a file as lists; whatever a corpus may be is read, and refused with the same messages."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from fastvec.corpus.columns import path_to
from fastvec.corpus.formats.source import open_source
from fastvec.corpus.locations import find_files
from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import ChunkLimits, Corpus
from fastvec.errors import InputError, quoted

LIMITS = ChunkLimits(rows=8192, bytes=64 << 20)


def has_column(path: str, name: str) -> bool:
    """Return whether the first file of `path` has the column `name`."""
    return path_to(open_source(find_files(path)[0]).schema, name) is not None


def read_columns(
    path: str, texts: Sequence[str], others: Sequence[str] = (), *, may_be_null: str | None = None
) -> list[list[Any]]:
    """Return the columns `texts`, which must be text, and `others` of a file, as lists of the same length.

    Raises InputError if the file cannot be read, has no rows or lacks a column, for a row that cannot be read, and for
    a null in any of these columns but `may_be_null`.
    """
    if texts:
        corpus = open_corpus(path, column=texts, keep=others)
    else:  # a corpus has a text: a template takes a number too
        corpus = open_corpus(path, template=f"{{{others[0]}}}", keep=others)
    columns: list[list[Any]] = [[] for _ in (*texts, *others)]
    for values in _arrays(corpus, len(texts)):
        for column, some in zip(columns, values, strict=True):
            column += some
    if not columns[0]:
        raise InputError(f"{path}: the file has no rows")
    for name, column in zip((*texts, *others), columns, strict=True):
        if name != may_be_null and None in column:
            raise InputError(f"{place(corpus, column.index(None))}: there is no value in the column {name!r}")
    return columns


def _arrays(corpus: Corpus, count: int) -> Iterator[list[list[Any]]]:
    """Yield the values of the first `count` text columns and of each kept one, for one chunk after another."""
    for chunk in corpus.chunks(LIMITS):
        if len(chunk.bad):
            raise InputError(
                f"{place(corpus, chunk.first_row + int(chunk.bad[0]))}: the row cannot be read: correct it"
            )
        rows = chunk.kept.num_rows
        texts: list[pa.Array] = [chunk.texts.slice(at, rows) for at in range(0, count * rows, rows)]
        yield [column.to_pylist() for column in (*texts, *chunk.kept.columns)]


def place(corpus: Corpus, row: int) -> str:
    """Say in which file a row is, and where."""
    ((uri, where),) = corpus.locate([row])
    return ", ".join([uri, *(f"{unit.replace('_', ' ')} {number}" for unit, number in where.items())])


def numbers(path: str, name: str, values: Sequence[Any]) -> list[float]:
    """Return the values of the column `name` as numbers; raises InputError for one that is none, or not finite."""
    found = []
    for row, value in enumerate(values):
        try:
            found.append(float(value))
        except (TypeError, ValueError):
            found.append(float("nan"))
        if not abs(found[-1]) < float("inf"):
            raise InputError(f"{path}: row {row + 1} has {quoted(value)} in the column {name!r}: expected a number")
    return found
