"""Reads tasks from files: scored pairs, labeled texts, and the queries, corpus and qrels of a retrieval collection."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastvec.errors import InputError, UsageError, quoted
from fastvec.evaluation.columns import has_column, numbers, read_columns
from fastvec.evaluation.labels import Classification, Clustering, Labeled
from fastvec.evaluation.retrieval import Retrieval
from fastvec.evaluation.similarity import Similarity
from fastvec.stores.address import is_remote
from fastvec.training.scored_pairs import COLUMNS, ScoredPairs, read_scored_pairs

QRELS = ("query-id", "corpus-id", "score")
BEIR = ("queries.jsonl", "corpus.jsonl", "qrels/test.tsv")


def read_pairs(path: str, columns: Sequence[str] | None = None) -> Similarity:
    """Read pairs of texts with scores; `columns` names the two texts and the score, None is the usual names.

    A .csv or .tsv file with the usual names may be without a header, as `fastvec adapt --eval-pairs` takes it.
    Raises InputError if the file cannot be read, a score is no number, or all scores are equal; UsageError if
    `columns` are not three.
    """
    if columns is None and not is_remote(path) and Path(path).suffix.lower() in (".csv", ".tsv"):
        return Similarity(name=_stem(path), pairs=read_scored_pairs(Path(path)))
    names = COLUMNS if columns is None else tuple(columns)
    if len(names) != 3:
        raise UsageError(f"expected the names of three columns, two texts and a score, got {', '.join(names)}")
    first, second, scores = read_columns(path, names[:2], names[2:])
    pairs = ScoredPairs(first=first, second=second, scores=np.array(numbers(path, names[2], scores)))
    if len(pairs.scores) < 2 or np.ptp(pairs.scores) == 0:
        raise InputError(f"{path}: a correlation needs pairs with different scores, found {len(scores)} with one score")
    return Similarity(name=_stem(path), pairs=pairs)


def read_labeled(path: str, text_column: str = "text", label_column: str = "label") -> Labeled:
    """Read texts with labels, of which there are at least two. Raises InputError."""
    texts, labels = read_columns(path, [text_column], [label_column])
    return Labeled(texts=texts, labels=[str(label) for label in labels])


def read_classification(
    train: str, test: str, text_column: str = "text", label_column: str = "label"
) -> Classification:
    """Read training and test texts with labels. Raises InputError if all training texts have the same label."""
    known, asked = (read_labeled(path, text_column, label_column) for path in (train, test))
    _require_labels(train, known, label_column)
    labels = set(known.labels)
    new = sum(label not in labels for label in asked.labels)
    notes = (f"test texts with a label that no training text has, which count as wrong: {new:,}",) if new else ()
    return Classification(name=_stem(test), train=known, test=asked, notes=notes)


def read_clusters(path: str, text_column: str = "text", label_column: str = "label") -> Clustering:
    """Read texts with labels for clustering. Raises InputError if all have the same label."""
    data = read_labeled(path, text_column, label_column)
    _require_labels(path, data, label_column)
    return Clustering(name=_stem(path), data=data)


def _require_labels(path: str, data: Labeled, column: str) -> None:
    if len(set(data.labels)) < 2:
        raise InputError(f"{path}: every text has the label {quoted(data.labels[0])}: expected several in {column!r}")


def read_beir(folder: str) -> Retrieval:
    """Read a collection in BEIR's layout: `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv` in one folder."""
    for name in BEIR:
        if not is_remote(folder) and not Path(folder, name).is_file():
            raise InputError(f"{folder} has no {name}: give a folder in BEIR's layout, or each file by its own option")
    queries, corpus, qrels = (f"{folder.rstrip('/')}/{name}" for name in BEIR)
    return read_retrieval(queries, corpus, qrels, name=_stem(folder))


def read_retrieval(queries: str, corpus: str, qrels: str, *, name: str | None = None) -> Retrieval:
    """Read a retrieval task, by default named as the corpus.

    Queries and corpus have the columns `_id` and `text`, and may have `title`, which is put before the text with a
    space between. Qrels have the columns `query-id`, `corpus-id` and `score`, or are in TREC's format. Queries without
    a relevant document are left out.

    Raises InputError if a file cannot be read, an id is there twice, a relevance is not a whole number, or no query
    has a relevant document.
    """
    asked, judged = read_texts(queries), read_qrels(qrels)
    documents = {name: text.strip() for name, text in read_texts(corpus).items()}  # as mteb does; queries stay
    relevant = {
        query: own for query, own in judged.items() if query in asked and any(grade > 0 for grade in own.values())
    }
    if not relevant:
        found = f"its first query is {next(iter(judged))!r}, that of {queries} is {next(iter(asked))!r}"
        raise InputError(f"{qrels}: no query of {queries} has a relevant document: {found}")
    missing = sum(document not in documents for own in relevant.values() for document in own)
    if missing == sum(map(len, relevant.values())):
        first = next(iter(next(iter(relevant.values()))))
        raise InputError(f"{qrels}: none of its documents, such as {first!r}, is in {corpus}")
    unknown = len(judged.keys() - asked.keys())
    counts = {
        "queries without a relevant document, left out": len(asked) - len(relevant),
        f"queries of the qrels that are not in {queries}, left out": unknown,
        f"judgements of documents that are not in {corpus}, which count as not found": missing,
    }
    return Retrieval(
        name=name or _stem(corpus),
        queries={query: asked[query] for query in relevant},
        documents=documents,
        qrels=relevant,
        notes=tuple(f"{note}: {count:,}" for note, count in counts.items() if count),
    )


def read_texts(path: str) -> dict[str, str]:
    """Return the texts of a file by their ids, each after its title, if it has one."""
    titled = has_column(path, "title")
    texts, ids, *titles = read_columns(path, ["text"], ["_id", *(["title"] * titled)], may_be_null="title")
    for one, count in Counter(ids).items():
        if count > 1:
            raise InputError(f"{path}: {count} rows have the _id {quoted(one)}: expected each id once")
    if titles:
        texts = [f"{title} {text}" if title else text for title, text in zip(titles[0], texts, strict=True)]
    return dict(zip(map(str, ids), texts, strict=True))


def read_qrels(path: str) -> dict[str, dict[str, int]]:
    """Return the relevance of documents to queries, by their ids. Raises InputError."""
    rows = _trec(path)
    if rows is None:
        queries, documents, grades = read_columns(path, [], QRELS)
        rows = [(str(query), str(one), grade) for query, one, grade in zip(queries, documents, grades, strict=True)]
    qrels: dict[str, dict[str, int]] = {}
    for (query, document, _), grade in zip(rows, numbers(path, QRELS[2], [row[2] for row in rows]), strict=True):
        if grade != int(grade):
            raise InputError(f"{path}: the relevance of {document} to {query} is {grade}: expected a whole number")
        if document in qrels.setdefault(query, {}):
            raise InputError(f"{path}: document {document!r} is judged twice for query {query!r}")
        qrels[query][document] = int(grade)
    return qrels


def _trec(path: str) -> list[tuple[str, str, str]] | None:
    """Return the rows of a file in TREC's format, `query 0 document relevance` without a header; None for another."""
    if is_remote(path) or not Path(path).is_file():
        return None
    try:
        lines = [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:  # Parquet, for one
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not lines or len(lines[0]) != 4 or not lines[0][3].lstrip("-").isdigit():
        return None
    for number, line in enumerate(lines, 1):
        if len(line) != 4:
            raise InputError(f"{path}: line {number} has {len(line)} fields: expected query, 0, document, relevance")
    return [(query, document, grade) for query, _, document, grade in lines]


def _stem(path: str) -> str:
    """Return the name of a task by that of its file or folder, without the suffixes of data files."""
    name = path.rstrip("/").rpartition("/")[2]
    return name.partition(".")[0] or name
