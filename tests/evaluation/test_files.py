import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec.errors import FastvecError, InputError
from fastvec.evaluation.evaluate import read_tasks
from fastvec.evaluation.files import read_beir, read_clusters, read_pairs, read_qrels, read_retrieval
from tests.evaluation.data import QRELS, save_beir

PAIRS = [{"a": "a cat", "b": "a kitten", "c": 4.5}, {"a": "a cat", "b": "a car", "c": 1}, {"a": "x", "b": "y", "c": 0}]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
def test_pairs_of_every_format(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"dev.{suffix}"
    mark = "\t" if suffix == "tsv" else ","
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(PAIRS), path)
    elif suffix == "jsonl":
        path.write_text(lines(PAIRS))
    else:
        path.write_text("\n".join([mark.join("abc"), *(mark.join(map(str, row.values())) for row in PAIRS)]))
    task = read_pairs(str(path), ["a", "b", "c"])
    assert (task.name, task.size) == ("dev", "3 pairs")
    assert task.pairs.first == ["a cat", "a cat", "x"]
    assert task.pairs.second == ["a kitten", "a car", "y"]
    assert task.pairs.scores.tolist() == [4.5, 1, 0]


def test_pairs_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_text("a cat,a kitten,4.5\na cat,a car,1\n")
    assert read_pairs(str(tmp_path / "dev.csv")).pairs.scores.tolist() == [4.5, 1]


def test_beir_folder(tmp_path: Path) -> None:
    task = read_beir(str(save_beir(tmp_path / "toy")))
    assert task.name == "toy"
    assert task.queries == {"q1": "railway", "q2": "baking bread"}
    assert task.documents["d1"] == "Trains A locomotive pulls a train."
    assert task.documents["d3"] == "Cats chase mice at night."
    assert task.qrels == {"q1": {"d1": 1, "d4": 2}, "q2": {"d2": 1, "d9": 1}}
    assert task.notes == (
        "queries without a relevant document, left out: 1",
        f"queries of the qrels that are not in {tmp_path}/toy/queries.jsonl, left out: 1",
        f"judgements of documents that are not in {tmp_path}/toy/corpus.jsonl, which count as not found: 1",
    )


def test_ids_may_be_numbers_and_qrels_of_any_format(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text(lines([{"_id": 1, "text": "x"}]))
    pq.write_table(pa.table({"_id": [7, 8], "text": ["x", "y"], "title": [None, "t"]}), tmp_path / "corpus.parquet")
    (tmp_path / "trec.txt").write_text("1 0 7 1\n1  Q0 8\t-1\n")
    pq.write_table(pa.table({"query-id": [1, 1], "corpus-id": [7, 8], "score": [1, -1]}), tmp_path / "qrels.parquet")
    for name in ("trec.txt", "qrels.parquet"):
        task = read_retrieval(*(str(tmp_path / one) for one in ("queries.jsonl", "corpus.parquet", name)))
        assert task.qrels == {"1": {"7": 1, "8": -1}}
        assert task.documents == {"7": "x", "8": "t y"}
        assert task.name == "corpus"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,c\nx,y,1\nx,z,high\n", r"dev.csv: row 2 has 'high' in the column 'c': expected a number"),
        ("a,b,c\nx,y,1\nx,z,nan\n", r"dev.csv: row 2 has 'nan' in the column 'c': expected a number"),
        ("a,b,c\nx,y,1\nx,,2\n", r"dev.csv, record 3: there is no value in the column 'b'"),
        ("a,b,c\nx,y,1\nx,2\n", r"dev.csv, record 3: the row cannot be read"),
        ("a,b,c\nx,y,1\nx,z,1\n", r"dev.csv: a correlation needs pairs with different scores, found 2 with one score"),
        ("a,b,c\n", r"dev.csv: the file has no rows"),
        ("a,b,d\nx,y,1\n", r"dev.csv: there is no column 'c'. Its columns: a \(string\), b \(string\), d \(string\)"),
        ("", r"dev.csv: the file is empty"),
    ],
)
def test_pairs_that_cannot_be_used(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_pairs(str(tmp_path / "dev.csv"), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", lines([{"_id": "d1", "text": "x"}] * 2), "2 rows have the _id 'd1': expected each id once"),
        ("corpus.jsonl", lines([{"id": "d1", "text": "x"}]), "there is no column '_id'"),
        ("corpus.jsonl", lines([{"_id": "d5", "text": "x"}]), r"none of its documents, such as 'd1', is in .*corpus"),
        (
            "queries.jsonl",
            lines([{"_id": "other", "text": "x"}]),
            r"no query of .* its first query is 'q1', .* 'other'",
        ),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t0\n", "no query of .* has a relevant document"),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq1\td1\t0.5\n",
            "relevance of d1 to q1 is 0.5: expected a whole",
        ),
        ("qrels/test.tsv", "q1 0 d1 1\nq1 0 d1 2\n", "document 'd1' is judged twice for query 'q1'"),
        ("qrels/test.tsv", "q1 0 d1 1\nq1 0 d1\n", "line 2 has 3 fields: expected query, 0, document, relevance"),
    ],
)
def test_collections_that_cannot_be_used(name: str, content: str, message: str, tmp_path: Path) -> None:
    folder = save_beir(tmp_path / "toy")
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_beir(str(folder))


def test_folder_that_is_no_collection(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no queries.jsonl: give a folder in BEIR's layout"):
        read_beir(str(tmp_path))


def test_labels(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label\na,x\nb,x\n")
    (tmp_path / "two.csv").write_text("text,label\na,x\nb,y\nc,y\n")
    path, other = str(tmp_path / "two.csv"), str(tmp_path / "one.csv")
    assert read_clusters(path).data.labels == ["x", "y", "y"]
    with pytest.raises(InputError, match=r"one.csv: every text has the label 'x': expected several in 'label'"):
        read_clusters(other)
    with pytest.raises(InputError, match="every text has the label 'x'"):
        read_tasks(train=other, test=path)
    (tmp_path / "new.csv").write_text("text,label\na,x\nb,z\n")
    (task,) = read_tasks(train=path, test=str(tmp_path / "new.csv"))
    assert task.size == "3 training and 2 test texts, 2 labels"
    assert task.notes == ("test texts with a label that no training text has, which count as wrong: 1",)


def test_qrels_alone(tmp_path: Path) -> None:
    assert read_qrels(str(save_beir(tmp_path / "toy") / "qrels/test.tsv")) == QRELS


def test_tasks_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.csv").write_text("text,label\na,x\nb,y\n")
    first, second = (str(tmp_path / folder / "test.csv") for folder in ("a", "b"))
    names = [task.name for task in read_tasks(train=first, test=first, clusters=[first, second])]
    assert names == [f"{first} (classification)", f"{first} (clustering)", second]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no task was given: --pairs, --beir, --queries, --train or --clusters"),
        ({"train": "x"}, "--train and --test are needed together: add --test"),
        ({"corpus": "x"}, "--queries and --corpus and --qrels are needed together: add --queries and --qrels"),
        ({"pairs": "missing.csv"}, "missing.csv: cannot be read"),
        ({"clusters": "missing.csv"}, "missing.csv: no such file or folder"),
        ({"pairs": "x.csv", "pair_columns": ["a", "b"]}, "expected the names of three columns, .* got a, b"),
    ],
)
def test_options_that_cannot_be_used(given: dict[str, Any], message: str) -> None:
    with pytest.raises(FastvecError, match=message):
        read_tasks(**given)
