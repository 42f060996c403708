"""The public tasks of `benchmarks.quality`, read from a folder.

STS-B dev and train, SICK trial    similarity of pairs of sentences
Cranfield                          retrieval: 225 queries over 1,400 abstracts, with binary relevance
PubMedQA                           retrieval: 1,000 questions, each answered by one of 1,000 abstracts
banking77                          classification of questions by their intent
each folder in BEIR's layout       retrieval, named as the folder
"""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from fastvec.evaluation import files
from fastvec.evaluation.retrieval import Retrieval
from fastvec.evaluation.similarity import Similarity
from fastvec.evaluation.tasks import Task
from fastvec.training.scored_pairs import ScoredPairs


def load_tasks(folder: Path) -> list[Task]:
    """Return the tasks whose files are anywhere below `folder`; raise a usage error if there are none."""
    readers: dict[str, Callable[[Path], Task]] = {
        "stsb-en-dev.csv": lambda path: replace(files.read_pairs(str(path)), name="STS-B dev"),
        "stsb-en-train.csv": lambda path: replace(files.read_pairs(str(path)), name="STS-B train"),
        "SICK_trial.txt": _sick,
        "cran.all.1400.xml": _cranfield,
        "ori_pqal.json": _pubmedqa,
        "banking77/train.csv": _banking,
    }
    found = {name: next(iter(sorted(folder.rglob(name))), None) for name in readers}
    tasks = [readers[name](path) for name, path in found.items() if path is not None]
    tasks += [files.read_beir(str(path.parent)) for path in sorted(folder.rglob("corpus.jsonl"))]
    if not tasks:
        raise click.UsageError(f"{folder} contains none of {', '.join(readers)}, corpus.jsonl")
    return tasks


def _sick(path: Path) -> Similarity:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    first, second = ([row[name] for row in rows] for name in ("sentence_A", "sentence_B"))
    scores = np.array([float(row["relatedness_score"]) for row in rows])
    return Similarity(name="SICK trial", pairs=ScoredPairs(first=first, second=second, scores=scores))


def _cranfield(path: Path) -> Retrieval:
    """Read Cranfield; its relevance judgements refer to a query by its position in the file, from 1."""
    found = re.findall(r"<doc>\s*<docno>(\d+)</docno>.*?<text>(.*?)</text>", path.read_text(), re.DOTALL)
    asked = re.findall(r"<title>(.*?)</title>", path.with_name("cran.qry.xml").read_text(), re.DOTALL)
    documents = {number: " ".join(text.split()) for number, text in found}
    qrels: dict[str, dict[str, int]] = {}
    for line in path.with_name("cranqrel.trec.txt").read_text().splitlines():
        query, _, number, judged = line.split()
        if int(judged) > 0 and number in documents:
            qrels.setdefault(query, {})[number] = 1
    queries = {str(n): " ".join(text.split()) for n, text in enumerate(asked, 1)}
    return Retrieval(name="Cranfield", queries={one: queries[one] for one in qrels}, documents=documents, qrels=qrels)


def _pubmedqa(path: Path) -> Retrieval:
    rows = json.loads(path.read_text(encoding="utf-8"))
    documents = {number: " ".join(row["CONTEXTS"]) for number, row in rows.items()}
    queries = {number: row["QUESTION"] for number, row in rows.items()}
    qrels = {number: {number: 1} for number in rows}
    return Retrieval(name="PubMedQA", queries=queries, documents=documents, qrels=qrels)


def _banking(path: Path) -> Task:
    task = files.read_classification(str(path), str(path.with_name("test.csv")), label_column="category")
    return replace(task, name="banking77")
