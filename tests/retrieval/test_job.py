"""`fastvec.search`: queries in, rows with their kept columns and texts out."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, embed, search
from fastvec.errors import FastvecError, InputError, ModelError, OutputError, RefusedError, UsageError
from fastvec.retrieval import job
from fastvec.retrieval.job import read_queries
from fastvec.retrieval.progress import SearchProgress
from fastvec.vectors.stored import open_vectors
from tests import ARTICLES
from tests.helpers.tiny import save_decoder

WHOLE = pq.read_table(ARTICLES).to_pylist()
QUERIES = ["silent films", "moths of Africa", "a village in Poland"]


def expected(articles: Path, model: Encoder, queries: list[str], k: int) -> list[list[int]]:
    with open_vectors([articles]) as vectors:
        stored = np.concatenate([vectors.floats(block) for block in vectors.blocks(100)])
    best: list[list[int]] = np.argsort(-(model.encode(queries) @ stored.T), axis=1, kind="stable")[:, :k].tolist()
    return best


def rows_of(hits: pa.Table | None) -> list[list[int]]:
    assert hits is not None
    numbers = range(max(hits["query"].to_pylist()) + 1)
    return [[hit["row"] for hit in hits.to_pylist() if hit["query"] == number] for number in numbers]


def test_the_nearest_rows_of_a_file_and_of_shards(
    articles_in_one: Path, articles_in_shards: Path, model: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = expected(articles_in_one, model, QUERIES, 4)
    for at_once in (1, 2, 4096):
        monkeypatch.setattr(job, "QUERIES_AT_ONCE", at_once)
        monkeypatch.setattr(job, "TEXTS_AT_ONCE", 5)
        for files in (articles_in_one, articles_in_shards):
            report = search(files, QUERIES, k=4, encoder=model)
            with_texts = search(files, QUERIES, k=4, encoder=model, text=True).hits
            assert with_texts is not None
            assert with_texts["text"].to_pylist() == [WHOLE[row]["text"] for rows in best for row in rows]
            assert rows_of(report.hits) == best
            assert report.hits is not None
            assert report.hits["rank"].to_pylist() == [1, 2, 3, 4] * 3
            assert report.hits["title"].to_pylist() == [WHOLE[row]["title"] for rows in best for row in rows]
            assert report.hits.schema.names == ["query", "rank", "score", "row", "title"]


def test_the_model_is_the_one_that_the_output_names(articles_in_one: Path, model: Encoder) -> None:
    report = search(articles_in_one, QUERIES[0], k=3, device="cpu")
    assert (report.queries, report.rows, report.similarity) == ([QUERIES[0]], 300, "cosine")
    assert rows_of(report.hits) == expected(articles_in_one, model, QUERIES[:1], 3)


def test_a_filter_leaves_rows_out(articles_in_one: Path, model: Encoder) -> None:
    ((first, *_),) = rows_of(search(articles_in_one, QUERIES[0], k=300, encoder=model).hits)
    title = WHOLE[first]["title"]
    found = search(articles_in_one, QUERIES[0], k=300, encoder=model, filter=f"title != {title!r} and row < 200").hits
    ((*rows,),) = rows_of(found)
    assert set(rows) == {row for row in range(200) if WHOLE[row]["title"] != title}
    with pytest.raises(UsageError, match="no row passes the filter"):
        search(articles_in_one, "x", encoder=model, filter="row > 1000")
    with pytest.raises(UsageError, match="names the column 'year'; the outputs have title, row"):
        search(articles_in_one, "x", encoder=model, filter="year > 1000")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl"])
def test_hits_are_written_as_they_would_be_returned(
    articles_in_one: Path, model: Encoder, tmp_path: Path, suffix: str
) -> None:
    target = tmp_path / f"hits{suffix}"
    returned = search(articles_in_one, QUERIES, k=2, encoder=model, text=True).hits
    report = search(articles_in_one, QUERIES, k=2, encoder=model, text=True, output=target)
    assert (report.hits, report.output) == (None, str(target))
    assert report.to_json()["queries"] == 3
    if suffix == ".parquet":
        read = pq.read_table(target)
    elif suffix == ".arrow":
        read = ipc.open_file(target).read_all()
    else:
        lines = [json.loads(line) for line in target.read_text().splitlines()]
        read = pa.Table.from_pylist(lines, schema=returned.schema if returned else None)
    assert returned is not None
    assert read.to_pylist() == returned.to_pylist()
    with pytest.raises(RefusedError):
        search(articles_in_one, QUERIES, encoder=model, output=target)
    search(articles_in_one, QUERIES[:1], k=1, encoder=model, output=target, overwrite=True)


def test_texts_are_shown_if_no_column_is(tmp_path: Path, model: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    corpus = tmp_path / "articles.parquet"
    shutil.copy(ARTICLES, corpus)
    embed([corpus], tmp_path / "vecs.arrow", encoder=model, column="text", limit=20)
    found = search(tmp_path / "vecs.arrow", "x", k=3, encoder=model).hits
    assert found is not None
    assert found["text"].to_pylist() == [WHOLE[row]["text"] for row in found["row"].to_pylist()]
    corpus.unlink()
    without = search(tmp_path / "vecs.arrow", "x", k=3, encoder=model).hits
    assert without is not None
    assert without.equals(found.drop_columns("text"))
    assert "texts are not shown" in caplog.text
    with pytest.raises(InputError, match=r"articles\.parquet"):
        search(tmp_path / "vecs.arrow", "x", k=3, encoder=model, text=True)


def test_several_outputs_are_told_apart(tmp_path: Path, model: Encoder) -> None:
    for name, limit in {"a": 20, "b": 30}.items():
        embed([ARTICLES], tmp_path / f"{name}.arrow", encoder=model, column="text", keep=["title"], limit=limit)
    files = [tmp_path / "a.arrow", tmp_path / "b.arrow"]
    found = search(files, "x", k=100, encoder=model).hits
    assert found is not None
    pairs = list(zip(found["file"].to_pylist(), found["row"].to_pylist(), strict=True))
    assert sorted(pairs) == [
        (str(file), row) for file, rows in zip(files, (20, 30), strict=True) for row in range(rows)
    ]


def test_a_report_is_printed_by_query(articles_in_one: Path, model: Encoder) -> None:
    one = str(search(articles_in_one, QUERIES[0], k=2, encoder=model)).splitlines()
    assert len(one) == 2
    several = str(search(articles_in_one, QUERIES, k=2, encoder=model)).splitlines()
    assert [line for line in several if line in QUERIES] == QUERIES
    assert several[1:3] == one
    document = search(articles_in_one, QUERIES, k=2, encoder=model).to_json()
    assert [query["query"] for query in document["queries"]] == QUERIES
    assert [hit["rank"] for hit in document["queries"][2]["hits"]] == [1, 2]


def test_values_are_printed_on_one_line(tmp_path: Path, model: Encoder) -> None:
    pq.write_table(pa.table({"text": ["a\x1b[31mb\nc" + "x" * 500, "d"], "n": [1, None]}), tmp_path / "a.parquet")
    embed([tmp_path / "a.parquet"], tmp_path / "vecs.arrow", encoder=model, column="text", keep=["n"])
    lines = str(search(tmp_path / "vecs.arrow", "x", encoder=model, text=True)).splitlines()
    assert len(lines) == 4
    assert all(line.isprintable() and len(line) < 250 for line in lines)
    assert sorted(line[-1] for line in lines[::2]) == ["-", "1"]
    assert sorted(line[:7] for line in lines[1::2]) == ["      a", "      d"]


def test_values_that_json_and_python_do_not_have(tmp_path: Path, model: Encoder) -> None:
    columns = {
        "text": ["a"],
        "when": pa.array([1], pa.timestamp("ns")),
        "day": pa.array([1], pa.date32()),
        "share": pa.array([float("nan")]),
        "raw": pa.array([b"\xff"]),
        "chunk": ["c"],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    keep = ["when", "day", "share", "raw", "chunk"]
    output = tmp_path / "vecs.arrow"
    embed([tmp_path / "a.parquet"], output, encoder=model, column="text", keep=keep)
    report = search(output, "x", encoder=model)
    expected = {"when": "1970-01-01 00:00:00.000000001", "day": "1970-01-02", "share": None, "chunk": "c"}
    (hit,) = json.loads(json.dumps(report.to_json(), allow_nan=False))["queries"][0]["hits"]
    assert {name: hit[name] for name in expected} == expected
    assert str(report).split()[1:] == ["0", "1970-01-01", "00:00:00.000000001", "1970-01-02", "-", "b'\\xff'", "c"]
    search(output, "x", encoder=model, output=tmp_path / "hits.jsonl")
    written = json.loads((tmp_path / "hits.jsonl").read_text())
    assert {name: written[name] for name in hit if name != "score"} == {n: v for n, v in hit.items() if n != "score"}


def test_kept_columns_of_several_outputs_have_one_type(tmp_path: Path, model: Encoder) -> None:
    types = {"a": (pa.int32(), [1]), "b": (pa.int64(), [2])}
    for name, (type_, values) in types.items():
        other = ["x"] if name == "a" else [1]
        pq.write_table(
            pa.table({"text": [name], "n": pa.array(values, type_), "other": other}), tmp_path / f"{name}.parquet"
        )
        embed(
            [tmp_path / f"{name}.parquet"],
            tmp_path / f"{name}.arrow",
            encoder=model,
            column="text",
            keep=["n", "other"],
        )
    found = search([tmp_path / "a.arrow", tmp_path / "b.arrow"], "x", encoder=model, filter="n > 0").hits
    assert found is not None
    assert found.schema.names == ["query", "rank", "score", "file", "row", "n"]
    assert sorted(found["n"].to_pylist()) == [1, 2]


def test_a_passage_is_named_by_its_number(tmp_path: Path, model: Encoder) -> None:
    embed([ARTICLES], tmp_path / "v.arrow", encoder=model, column="text", limit=3, long="chunks", chunk_tokens=40)
    lines = str(search(tmp_path / "v.arrow", "x", k=3, encoder=model)).splitlines()
    assert all(re.fullmatch(r"  -?\d\.\d{3}  \d:\d+ *", line) for line in lines[::2]), lines
    assert all(re.fullmatch(r" {6}\S.*", line) for line in lines[1::2]), lines


def test_progress_reaches_all_pairs(articles_in_one: Path, model: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "QUERIES_AT_ONCE", 2)
    seen: list[SearchProgress] = []
    search(articles_in_one, QUERIES, encoder=model, progress=seen.append)
    assert seen[-1].share == (900, 900)
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert str(seen[-1]) == "compared 100% of 900 pairs of a query and a row"


CASES: list[tuple[dict[str, Any], type[FastvecError], str]] = [
    ({"k": 0}, UsageError, "k 0 is out of range"),
    ({"k": 10_001}, UsageError, "the maximum 10,000"),
    ({"queries": []}, UsageError, "there is no query"),
    ({"queries": ["a", " "]}, UsageError, "query 1 is empty"),
    ({"queries": ["a", 3]}, UsageError, "query 1 is a int"),
    ({"keep": ["year"]}, UsageError, "no kept column 'year': .* has title"),
    ({"output": "hits.csv"}, OutputError, "ends in none of"),
    ({"prompt_name": "x"}, UsageError, "no prompt named 'x'"),
    ({"vector_column": "x"}, UsageError, "no column of vectors named 'x'"),
    ({"filter": "title >"}, UsageError, "is not a condition"),
]


@pytest.mark.parametrize(("options", "error", "message"), CASES)
def test_what_cannot_be_searched_is_one_line(
    articles_in_one: Path, model: Encoder, options: dict[str, Any], error: type[FastvecError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        search(articles_in_one, **{"queries": "x", "encoder": model, **options})
    assert "\n" not in str(raised.value)


def test_another_model_is_refused(articles_in_one: Path, tmp_path: Path) -> None:
    other = save_decoder(tmp_path / "other", "llama", seed=9)
    with pytest.raises(ModelError, match="by another weights"):
        search(articles_in_one, "x", model=other, device="cpu")


def test_a_kept_column_with_the_name_of_a_result_has_another_in_the_hits(tmp_path: Path, model: Encoder) -> None:
    inputs = pa.table({"text": ["a"], "rank": [7], "kept_rank": [8], "file": ["f"]})
    pq.write_table(inputs, tmp_path / "a.parquet")
    embed([tmp_path / "a.parquet"], tmp_path / "vecs.arrow", encoder=model, keep=inputs.schema.names)
    found = search(tmp_path / "vecs.arrow", "x", encoder=model).hits
    assert found is not None
    del (own := found.to_pylist()[0])["score"]
    assert own == {"query": 0, "rank": 1, "row": 0, "text": "a", "kept_kept_rank": 7, "kept_rank": 8, "file": "f"}
    found = search(tmp_path / "vecs.arrow", "x", encoder=model, keep=["text"], text=True).hits
    assert found is not None
    assert found.schema.names[-2:] == ["kept_text", "text"]


def test_an_output_without_rows_has_no_hits(tmp_path: Path, model: Encoder) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    embed([tmp_path / "a.parquet"], tmp_path / "vecs.arrow", encoder=model)
    report = search(tmp_path / "vecs.arrow", ["x", "y"], encoder=model)
    assert report.hits is not None
    assert report.hits.num_rows == 0
    assert str(report).count("no row has a vector and passes the filter") == 2


def test_queries_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"_id": "1", "text": "a"}\n{"_id": "2", "text": "b"}\n')
    assert read_queries(tmp_path / "q.jsonl") == ["a", "b"]
    assert read_queries(tmp_path / "q.jsonl", "_id") == ["1", "2"]
    (tmp_path / "q.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    with pytest.raises(InputError, match="row 1 has no text in column text"):
        read_queries(tmp_path / "q.jsonl")
