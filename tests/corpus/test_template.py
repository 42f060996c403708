from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from fastvec.corpus.opening import open_corpus
from fastvec.errors import InputError, UsageError
from tests.helpers.corpora import ALL, read_texts, write_parquet

ROWS = pa.table(
    {
        "title": pa.array(["One", None, "", None]).dictionary_encode(),
        "text": pa.array([b"first", b"bad \xff byte", b"third", None], pa.binary()),
        "meta": [{"lang": "en", "dc:year": 1999}, {"lang": None, "dc:year": 7}, None, None],
        "day": pa.array([date(2020, 1, 2), None, None, None]),
        "price": pa.array([Decimal("1.50"), None, None, None]),
        "score": [0.5, None, None, None],
        "good": [True, None, None, None],
        "tags": [["a"], None, None, None],
    }
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{text}", ["first", "bad \ufffd byte", "third", None]),
        ("{title}", ["One", None, "", None]),
        ("{title}\n{text}", ["One\nfirst", "\nbad \ufffd byte", "\nthird", None]),
        ("{{{meta.lang}}} {title}!", ["{en} One!", None, "{} !", None]),
        (
            "{meta.dc:year}: {text} {text}",
            ["1999: first first", "7: bad \ufffd byte bad \ufffd byte", ": third third", None],
        ),
        ("{day} {price} {score} {good}", ["2020-01-02 1.50 0.5 true", None, None, None]),
    ],
)
def test_a_text_is_put_together_from_columns(tmp_path: Path, template: str, expected: list[str | None]) -> None:
    path = write_parquet(tmp_path / "c.parquet", ROWS, group_rows=3)
    assert read_texts(path, template=template) == expected
    assert open_corpus([path], template=template).columns == (template,)


def test_a_template_counts_the_texts_that_it_repairs_and_sizes_chunks_by_its_columns(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c.parquet", ROWS)
    (chunk,) = open_corpus([path], template="{text} {title}", keep=["title"]).chunks(ALL)
    assert (chunk.repaired, chunk.kept["title"].to_pylist()) == (1, ["One", None, "", None])


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("text", UsageError, "template 'text' names no column between braces: write it as"),
        ("{} {text}", UsageError, "names no column between braces"),
        ("{text", UsageError, "template '{text': expected '}' before end of string; write {{ and }} for braces"),
        ("text}", UsageError, "template 'text}': Single '}' encountered in format string"),
        ("{text} \udcff", UsageError, "is not valid UTF-8"),
        ("{nope}", InputError, "c.parquet: there is no column 'nope'. Its columns: title"),
        (
            "{tags}",
            InputError,
            "c.parquet: column 'tags' is list<element: string>, not text, a number, a date or a time",
        ),
        ("{meta}", InputError, "column 'meta' is struct"),
    ],
)
def test_a_template_that_cannot_work_is_refused(
    tmp_path: Path, template: str, error: type[Exception], message: str
) -> None:
    path = write_parquet(tmp_path / "c.parquet", ROWS)
    with pytest.raises(error) as refused:
        open_corpus([path], template=template)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_column_and_a_template_exclude_each_other(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c.parquet", ROWS)
    with pytest.raises(UsageError, match="a column and a template were both given: choose one"):
        open_corpus([path], column="text", template="{text}")
    with pytest.raises(UsageError, match="column 'text' is given twice as a text column; give it once"):
        open_corpus([path], column=["text", "title", "text"])


def test_a_column_that_cannot_be_written_as_text_is_refused_in_one_line(tmp_path: Path) -> None:
    times = pa.array([0], pa.timestamp("s", tz="Mars/Crater"))
    path = write_parquet(tmp_path / "c.parquet", pa.table({"at": times, "text": ["x"]}))
    with pytest.raises(InputError, match=r"a column of type timestamp\[.*\] cannot be written as text: .*Mars/Crater"):
        read_texts(path, template="{at} {text}")
