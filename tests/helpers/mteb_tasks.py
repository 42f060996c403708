"""Tasks of mteb on local files, and what their scores are computed from."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from fastvec import Encoder
from fastvec.mteb import FastvecEncoder
from tests import ARTICLES

Vectors = npt.NDArray[np.float32]
Rows = list[dict[str, Any]]

COUNT = 150  # articles
CLASSES = {"Reranking": "Retrieval"}  # AbsTaskReranking reads an older format


def write_data(folder: Path) -> Path:
    """Write the articles as a data set for each kind of task, and return the folder."""
    articles = pq.read_table(ARTICLES).slice(0, COUNT).to_pylist()
    bodies = [article["text"].partition("\n\n")[2] for article in articles]
    titles = [article["title"] for article in articles]
    numbers = range(len(titles))
    corpus = [{"_id": f"d{i}", "title": titles[i] if i % 2 else "", "text": bodies[i]} for i in numbers]
    write_lines(folder / "corpus.jsonl", corpus)
    write_lines(folder / "queries.jsonl", [{"_id": f"q{i}", "text": titles[i]} for i in numbers if i % 3 == 0])
    write_lines(folder / "labels.jsonl", [{"text": text, "label": label_of(text)} for text in bodies])
    grades = [(f"q{i}", f"d{(i + step) % COUNT}", 2 - step) for i in numbers if i % 3 == 0 for step in (0, 1)]
    (folder / "qrels").mkdir()
    write_table(folder / "qrels/test.tsv", ["query-id", "corpus-id", "score"], grades, delimiter="\t")
    pairs = [(titles[i], bodies[(i + i % 3) % COUNT], 5 - 2 * (i % 3)) for i in numbers]
    write_table(folder / "pairs.csv", ["sentence1", "sentence2", "score"], pairs)
    return folder


def label_of(text: str) -> int:
    return 0 if "born" in text else 1 if re.search("Championship|Olympic|season", text) else 2


def write_lines(path: Path, rows: Rows) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def read_lines(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_table(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([names, *rows])


def read_table(path: Path, delimiter: str = ",") -> dict[str, list[str]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter=delimiter))
    return {name: [row[name] for row in rows] for name in rows[0]}


def table(**columns: Any) -> Any:
    return pytest.importorskip("datasets").Dataset.from_dict(columns)


def make_task(
    mteb: Any,
    kind: str,
    data: Any,
    main_score: str,
    *,
    class_name: str | None = None,
    prompt: Any = None,
    **attributes: Any,
) -> Any:
    """Return a task of mteb's type `kind` whose data set is `data`; `class_name` is mteb's after `AbsTask`."""
    base = getattr(mteb.abstasks, f"AbsTask{class_name or CLASSES.get(kind, kind)}")
    metadata = mteb.abstasks.task_metadata.TaskMetadata(
        name=f"Local{kind}",
        type=kind,
        description="a task on local files",
        dataset={"path": "local", "revision": "1"},
        eval_langs=["eng-Latn"],
        main_score=main_score,
        prompt=prompt,
    )

    def load_data(self: Any, num_proc: int | None = None, **options: Any) -> None:
        self.dataset, self.data_loaded = data, True

    return type(f"Local{kind}", (base,), {"metadata": metadata, "load_data": load_data, **attributes})()


def make_pairs(mteb: Any, folder: Path, kind: str, main_score: str, **options: Any) -> Any:
    pairs = read_table(folder / "pairs.csv")
    grades = [int(score) for score in pairs["score"]]
    labels = {"score": grades} if kind == "STS" else {"labels": [int(grade > 1) for grade in grades]}
    texts = {name: pairs[name] for name in ("sentence1", "sentence2")}
    return make_task(mteb, kind, {"test": table(**texts, **labels)}, main_score, **options)


def make_retrieval(mteb: Any, folder: Path, kind: str, main_score: str, **options: Any) -> Any:
    corpus, queries = read_lines(folder / "corpus.jsonl"), read_lines(folder / "queries.jsonl")
    split = {
        "corpus": table(**{name.strip("_"): [row[name] for row in corpus] for name in ("_id", "title", "text")}),
        "queries": table(**{name.strip("_"): [row[name] for row in queries] for name in ("_id", "text")}),
        "relevant_docs": read_relevance(folder),
        "top_ranked": candidates(folder) if kind == "Reranking" else None,
    }
    return make_task(mteb, kind, {"default": {"test": split}}, main_score, **options)


def read_labeled(folder: Path) -> tuple[list[str], list[int]]:
    rows = read_lines(folder / "labels.jsonl")
    return [row["text"] for row in rows], [row["label"] for row in rows]


def read_relevance(folder: Path) -> dict[str, dict[str, int]]:
    relevance: dict[str, dict[str, int]] = {}
    table = read_table(folder / "qrels/test.tsv", delimiter="\t")
    for query, document, score in zip(*table.values(), strict=True):
        relevance.setdefault(query, {})[document] = int(score)
    return relevance


def candidates(folder: Path) -> dict[str, list[str]]:
    """The documents to rerank for each query: its relevant ones and ten others."""
    numbers = {query: int(query[1:]) for query in read_relevance(folder)}
    return {query: [f"d{(number + step) % COUNT}" for step in range(12)] for query, number in numbers.items()}


def scores_of(mteb: Any, encoder: FastvecEncoder, task: Any, cache: Any = None) -> dict[str, Any]:
    result = mteb.evaluate(encoder, task, cache=cache, show_progress_bar=False, co2_tracker=False)
    (scores,) = result.task_results[0].scores["test"]
    return dict(scores)


def loader(texts: Sequence[str], batch_size: int = 2) -> DataLoader[Any]:
    return DataLoader(table(text=list(texts)), batch_size=batch_size)


def encode(encoder: FastvecEncoder, texts: Sequence[str], task: Any, prompt_type: Any = None) -> Vectors:
    names: dict[str, Any] = {"hf_split": "test", "hf_subset": "default"}
    return encoder.encode(loader(texts), task_metadata=task.metadata, prompt_type=prompt_type, **names)


def average_precision(relevant: Sequence[bool], total: int) -> float:
    """The mean precision at the ranks of relevant items, of which there are `total`."""
    found = np.cumsum(relevant)
    return float(sum(found[rank] / (rank + 1) for rank in range(len(relevant)) if relevant[rank]) / total)


def rankings(encoder: Encoder, folder: Path, allowed: dict[str, list[str]] | None = None) -> dict[str, list[str]]:
    """The documents for each query, the most similar first, by the encoder alone."""
    corpus, queries = read_lines(folder / "corpus.jsonl"), read_lines(folder / "queries.jsonl")
    documents = encoder.encode_document([f"{row['title']} {row['text']}".strip() for row in corpus])
    scores = encoder.similarity(encoder.encode_query([row["text"] for row in queries]), documents)
    ranked = {}
    for query, row in zip(queries, scores, strict=True):
        found = [corpus[i]["_id"] for i in np.argsort(-row)]
        ranked[query["_id"]] = [name for name in found if allowed is None or name in allowed[query["_id"]]]
    return ranked


def paired(encoder: Encoder, folder: Path) -> tuple[Vectors, npt.NDArray[np.int_]]:
    """The cosine of each pair, and its grade."""
    pairs = read_table(folder / "pairs.csv")
    cosines = (encoder.encode(pairs["sentence1"]) * encoder.encode(pairs["sentence2"])).sum(axis=1)
    return cosines, np.array(pairs["score"], int)


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """The correlation of ranks, where equal values share the mean of theirs."""

    def ranks(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        shared: npt.NDArray[np.float64] = (counts.cumsum() - (counts - 1) / 2)[inverse]
        return shared

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])
