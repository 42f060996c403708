"""The columns of JSON lines: inferred from the first lines, in bounded memory however many fields they have."""

import json
from pathlib import Path

import pytest

from fastvec.corpus.formats import json_lines
from fastvec.corpus.formats.json_lines import SAMPLE_LINES
from fastvec.corpus.opening import open_corpus
from fastvec.errors import InputError
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


def test_a_field_has_one_type_in_all_files(tmp_path: Path) -> None:
    """What is null in all lines of one of them, a whole number in another, an object with other fields in a third."""
    first = write(tmp_path / "a.jsonl", {"text": "a", "n": None, "m": {"x": 1}, "only": "a"})
    second = write(tmp_path / "b.jsonl", {"text": "b", "n": 1, "m": {"y": "z"}, "only": "b"})
    third = write(tmp_path / "c.jsonl", {"text": "c", "n": 0.5, "m": None, "only": "c"})
    corpus = open_corpus([first, second, third], column="text", keep=["n", "m", "only"])
    assert [str(field.type) for field in corpus.kept_schema] == ["double", "struct<x: int64, y: string>", "string"]
    assert [row for chunk in corpus.chunks(ALL) for row in chunk.kept.to_pylist()] == [
        {"n": None, "m": {"x": 1, "y": None}, "only": "a"},
        {"n": 1.0, "m": {"x": None, "y": "z"}, "only": "b"},
        {"n": 0.5, "m": None, "only": "c"},
    ]
    (nested,) = open_corpus([first, second], column="text", keep=["m.x"]).kept_schema
    assert str(nested.type) == "int64"


def test_a_field_of_texts_and_numbers_is_text_and_loses_no_row(tmp_path: Path) -> None:
    values: list[tuple[object, object]] = [(7, "x7"), (True, 1.50), ("", None)]
    lines = [{"text": "a", "id": first, "more": {"ids": [second]}} for first, second in values]
    path = write(tmp_path / "a.jsonl", *lines)
    corpus = open_corpus([path], column="text", keep=["id", "more"])
    (chunk,) = corpus.chunks(ALL)
    assert chunk.bad.tolist() == []
    assert chunk.kept.to_pylist() == [
        {"id": "7", "more": {"ids": ["x7"]}},
        {"id": "true", "more": {"ids": ["1.5"]}},
        {"id": "", "more": {"ids": [None]}},
    ]


def test_types_that_exclude_each_other_in_two_files_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", {"text": "a", "n": 1})
    second = write(tmp_path / "b.jsonl", {"text": "b", "n": ["one"]})
    with pytest.raises(InputError, match=r"b\.jsonl: kept column 'n' is list<item: string>, but int64 in .*a\.jsonl"):
        open_corpus([first, second], column="text", keep=["n"])


def test_empty_files_among_others_have_no_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As writers of many files at once leave them."""
    for name in ("a", "c", "e"):
        (tmp_path / f"{name}.jsonl").write_bytes(b"" if name == "a" else b" \n\n")
    write(tmp_path / "b.jsonl", {"text": "b"})
    write(tmp_path / "d.jsonl", {"text": "d"})
    corpus = open_corpus([tmp_path])
    (chunk,) = corpus.chunks(ALL)
    assert chunk.texts.to_pylist() == ["b", "d"]
    assert caplog.messages == [f"3 of 5 files are empty and have no rows, e.g. {tmp_path}/a.jsonl"]
    with pytest.raises(InputError, match=r"c\.jsonl: no line has an object"):
        open_corpus([tmp_path / "c.jsonl", tmp_path / "e.jsonl"])


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
    path = write(tmp_path / "a.jsonl", *[{"text": f"{i}" if i % 5 else [i], "m": {"i": i}} for i in range(1, 40)])

    corpus = open_corpus([path], column="text", keep=["m.i"])

    chunks = list(corpus.chunks(ALL))
    assert [text for chunk in chunks for text in chunk.texts.to_pylist()] == [
        f"{i}" if i % 5 else None for i in range(1, 40)
    ]
    assert [row["m.i"] for chunk in chunks for row in chunk.kept.to_pylist()] == [
        i if i % 5 else None for i in range(1, 40)
    ]
    assert [chunk.first_row + row for chunk in chunks for row in chunk.bad.tolist()] == list(range(4, 39, 5))
