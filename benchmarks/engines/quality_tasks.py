"""The public tasks of `benchmarks.quality`, read from a folder: texts, items computed from vectors, and a score.

    STS-B dev and train, SICK trial    Spearman correlation of cosine similarity with human scores, over pairs
    Cranfield                          nDCG@10 of 225 queries over 1,400 abstracts, with binary relevance
    banking77                          share of test questions whose nearest training question has the same intent

A score is a mean or a correlation over items, so that it can be computed for a bootstrap sample of the items.

Shapes: n texts, D dimensions, m items.
"""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from fastvec.training.scored_pairs import read_scored_pairs, spearman

Array = npt.NDArray[Any]
# from texts to unit vectors, the rows of a matrix that may be sparse; called once with all texts of a task
Embed = Callable[[Sequence[str]], Any]
DEPTH = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """`items` computes the items [m, …] from the vectors of `texts`; `score` takes them, or a sample of them."""

    name: str
    measure: str
    texts: list[str]
    items: Callable[[Any], Array]
    score: Callable[[Array], float]


def load_tasks(folder: Path) -> list[Task]:
    """Return the tasks whose files are anywhere below `folder`; raise a usage error if there are none."""
    readers: dict[str, Callable[[Path], Task]] = {
        "stsb-en-dev.csv": lambda path: pairs_task("STS-B dev", path),
        "stsb-en-train.csv": lambda path: pairs_task("STS-B train", path),
        "SICK_trial.txt": _sick,
        "cran.all.1400.xml": _cranfield,
        "banking77/train.csv": _banking,
    }
    found = {name: next(iter(sorted(folder.rglob(name))), None) for name in readers}
    tasks = [readers[name](path) for name, path in found.items() if path is not None]
    if not tasks:
        raise click.UsageError(f"{folder} contains none of {', '.join(readers)}")
    return tasks


def pairs_task(name: str, path: Path) -> Task:
    """Return a similarity task from a CSV file of sentence1, sentence2, score."""
    pairs = read_scored_pairs(path)
    return _similarity(name, pairs.first, pairs.second, pairs.scores)


def _sick(path: Path) -> Task:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    first, second = ([row[name] for row in rows] for name in ("sentence_A", "sentence_B"))
    return _similarity("SICK trial", first, second, np.array([float(row["relatedness_score"]) for row in rows]))


def _similarity(name: str, first: list[str], second: list[str], scores: Array) -> Task:
    def items(vectors: Any) -> Array:
        return np.stack([cosines(vectors[: len(first)], vectors[len(first) :]), scores], axis=1)

    return Task(
        name=name,
        measure="Spearman × 100",
        texts=[*first, *second],
        items=items,
        score=lambda sample: spearman(sample[:, 0], sample[:, 1]),
    )


def _cranfield(path: Path) -> Task:
    """Read Cranfield; its relevance judgements refer to a query by its position in the file, from 1."""
    documents = re.findall(r"<doc>\s*<docno>(\d+)</docno>.*?<text>(.*?)</text>", path.read_text(), re.DOTALL)
    queries = re.findall(r"<title>(.*?)</title>", path.with_name("cran.qry.xml").read_text(), re.DOTALL)
    place = {number: i for i, (number, _) in enumerate(documents)}
    relevant = np.zeros((len(queries), len(documents)), dtype=bool)
    for line in path.with_name("cranqrel.trec.txt").read_text().splitlines():
        query, _, number, judged = line.split()
        if int(judged) > 0 and number in place:
            relevant[int(query) - 1, place[number]] = True

    def items(vectors: Any) -> Array:
        scores = dense(vectors[: len(queries)] @ vectors[len(queries) :].T)
        return np.array([ndcg(own, wanted) for own, wanted in zip(scores, relevant, strict=True) if wanted.any()])

    texts = [" ".join(text.split()) for text in [*queries, *(text for _, text in documents)]]
    return Task(name="Cranfield", measure="nDCG@10 × 100", texts=texts, items=items, score=_mean)


def _banking(path: Path) -> Task:
    (train, labels), (test, wanted) = (_questions(file) for file in (path, path.with_name("test.csv")))

    def items(vectors: Any) -> Array:
        nearest = dense(vectors[len(train) :] @ vectors[: len(train)].T).argmax(axis=1)
        return np.asarray(labels[nearest] == wanted, dtype=float)

    return Task(name="banking77", measure="accuracy × 100", texts=[*train, *test], items=items, score=_mean)


def _questions(path: Path) -> tuple[list[str], Array]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], np.array([row["category"] for row in rows])


def ndcg(scores: Array, relevant: Array) -> float:
    """Return nDCG@10 with gain 1 for relevant documents (Järvelin and Kekäläinen, 2002)."""
    discounts = 1 / np.log2(np.arange(2, DEPTH + 2))
    found = relevant[np.argsort(-scores, kind="stable")[:DEPTH]]
    best = discounts[: min(DEPTH, int(relevant.sum()))].sum()
    return float((found * discounts[: len(found)]).sum() / best)


def cosines(first: Any, second: Any) -> Array:
    """Return the cosine similarity of each pair of rows, which must be unit vectors."""
    if isinstance(first, np.ndarray):
        products: Array = (first * second).sum(axis=1)
        return products
    return np.asarray(first.multiply(second).sum(axis=1)).ravel()


def dense(products: Any) -> Array:
    return products if isinstance(products, np.ndarray) else products.toarray()


def _mean(sample: Array) -> float:
    return float(sample.mean())
