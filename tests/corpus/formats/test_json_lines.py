"""The columns of JSON lines: inferred from the first lines, in bounded memory however many fields they have."""

import json
from pathlib import Path

import pytest

from fastvec.corpus.formats import json_lines
from fastvec.corpus.formats.json_lines import SAMPLE_LINES
from fastvec.corpus.opening import open_corpus
from tests.helpers.corpora import ALL


def write(path: Path, *objects: object) -> Path:
    path.write_text("\n".join(map(json.dumps, objects)))
    return path


def test_a_date_in_some_lines_and_a_text_in_others_are_texts(tmp_path: Path) -> None:
    """Also in an object, of which no other field may be lost by that."""
    dates = [{"text": "a", "meta": {"when": "2020-01-01"}, "list": ["2020-01-01"]}] * SAMPLE_LINES
    other = {"text": "b", "meta": {"when": "unknown", "lang": "en"}, "list": ["unknown"]}
    path = write(tmp_path / "a.jsonl", *dates, other)

    corpus = open_corpus([path], column="text", keep=["meta", "list"])

    assert [str(field.type) for field in corpus.kept_schema] == [
        "struct<when: string, lang: string>",
        "list<item: string>",
    ]
    (chunk,) = corpus.chunks(ALL)
    assert chunk.kept.slice(SAMPLE_LINES - 1).to_pylist() == [
        {"meta": {"when": "2020-01-01", "lang": None}, "list": ["2020-01-01"]},
        {"meta": {"when": "unknown", "lang": "en"}, "list": ["unknown"]},
    ]


def test_what_is_null_in_the_first_lines_has_the_type_of_later_ones(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        *[{"text": "a", "n": None, "m": {"n": None}, "never": None}] * SAMPLE_LINES,
        {"text": "b", "n": 1, "m": {"n": 0.5}},
    )
    corpus = open_corpus([path], column="text", keep=["n", "m", "never"])
    assert [str(field.type) for field in corpus.kept_schema] == ["int64", "struct<n: double>", "string"]


def test_after_so_many_fields_no_more_become_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MOST_FIELDS", 3 * SAMPLE_LINES)
    lines = [{"text": f"text {i}", "by_id": {f"id {i}": i}} for i in range(5 * SAMPLE_LINES)]
    path = write(tmp_path / "a.jsonl", *lines)

    corpus = open_corpus([path], column="text", keep=["by_id"])

    (chunk,) = corpus.chunks(ALL)
    assert chunk.texts.to_pylist() == [line["text"] for line in lines]
    assert chunk.bad.size == 0
    kept = [row["by_id"] for row in chunk.kept.to_pylist()]
    assert list(kept[0]) == [f"id {i}" for i in range(3 * SAMPLE_LINES)]
    assert [[value for value in row.values() if value is not None] for row in kept] == [
        [i] if i < 3 * SAMPLE_LINES else [] for i in range(len(lines))
    ]


@pytest.mark.parametrize("values", [1, 7, 1000])
def test_rows_are_the_same_however_many_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: int
) -> None:
    monkeypatch.setattr(json_lines, "MOST_VALUES", values)
    path = write(tmp_path / "a.jsonl", *[{"text": f"{i}" if i % 5 else i, "m": {"i": i}} for i in range(1, 40)])

    corpus = open_corpus([path], column="text", keep=["m.i"])

    chunks = list(corpus.chunks(ALL))
    assert [text for chunk in chunks for text in chunk.texts.to_pylist()] == [
        f"{i}" if i % 5 else None for i in range(1, 40)
    ]
    assert [row["m.i"] for chunk in chunks for row in chunk.kept.to_pylist()] == [
        i if i % 5 else None for i in range(1, 40)
    ]
    assert [chunk.first_row + row for chunk in chunks for row in chunk.bad.tolist()] == list(range(4, 39, 5))
