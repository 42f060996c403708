"""Conditions on columns: what they mean, and what is refused."""

from datetime import date, time

import pyarrow as pa
import pytest

from fastvec.errors import UsageError
from fastvec.retrieval.filters import Filter

TABLE = pa.table(
    {
        "year": pa.array([1990, 2000, None]),
        "title": ["a", "b`c`", None],
        "is ok": [True, False, True],
        "meta": [{"source": "x"}, {"source": "y"}, None],
        "day": pa.array([date(2020, 1, 1), date(2020, 1, 2), None]),
        "at": pa.array([time(6, 30), time(12), None], pa.time64("us")),
        "seen": pa.array([0, 3600, None], pa.timestamp("s", "Europe/Berlin")),  # 1:00 and 2:00 there
        "inner": pa.array([{"day": date(2020, 1, 1)}, {"day": date(2020, 1, 2)}, None]),
        "meta.title": ["x", "y", None],
        "meta.deep": [{"er": 1}, {"er": 2}, None],
    }
)

WIDE = pa.struct({"source": pa.string(), "none": pa.int64()})
MEANINGS = {
    "year > 1990": [False, True, False],
    "year >= 1990 and title in ('a', 'z')": [True, False, False],
    "year == 1990 or year == 2000": [True, True, False],
    "title not in ('a',)": [False, True, False],
    "not title in ('a',)": [False, True, False],
    "title in ('a', 'x') or year is None": [True, False, True],
    "not year > 1990": [True, False, False],
    "year is None": [False, False, True],
    "title is not None": [True, True, False],
    "1980 < year < 1999": [True, False, False],
    "2000 == year": [False, True, False],
    "year > -5": [True, True, False],
    "`is ok`": [True, False, True],
    "not `is ok` and year != 1": [False, True, False],
    "title == 'b`c`'": [False, True, False],
    "meta.source == 'x'": [True, False, False],
    "day > '2020-01-01'": [False, True, False],
    "'2020-01-01' == day": [True, False, False],
    "day in ('2020-01-02',)": [False, True, False],
    "  year < 1995 ": [True, False, False],
    "at > '07:00'": [False, True, False],
    "at in ('06:30:00',)": [True, False, False],
    "seen > '1970-01-01 01:30:00'": [False, True, False],
    "seen == '1970-01-01T00:00:00Z'": [True, False, False],
    "inner.day > '2020-01-01'": [False, True, False],
    "meta.title == 'y'": [False, True, False],
    "`meta.title` == 'y' and meta.source == 'y'": [False, True, False],
    "meta.deep.er == 1": [True, False, False],
}


@pytest.mark.parametrize("text", MEANINGS)
def test_a_condition_means_what_it_means_in_python_and_is_false_where_null(text: str) -> None:
    condition = Filter(text, TABLE.schema)
    assert condition.mask(TABLE.select(condition.columns)).to_pylist() == MEANINGS[text]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a condition"),
        ("year >", "is not a condition .*invalid syntax"),
        ("\0", "is not a condition"),
        ("(" * 500, "is not a condition"),
        ("not " * 5000 + "year", "is not a condition"),
        ("author == 'x'", "names the column 'author'; the outputs have year, title, is ok, meta, day"),
        ("1 == 1", "is not a condition .it names no column"),
        ("None is None", "is not a condition .it names no column"),
        ("at > 'noon'", "'noon' is no time64"),
        ("seen > 'then'", "'then' is no timestamp"),
        ("__import__('os').remove('x')", "which is no condition"),
        ("year == __import__('os')", "where a text, a number or a column is expected"),
        ("(lambda: 1)() == year", "where a text, a number or a column is expected"),
        ("year + 1 == 2", "has 'year [+] 1', where"),
        ("title in 'abc'", "`in` without values in parentheses"),
        ("title is 'abc'", "`is` without None"),
        ("[year][0].real == 1", "only columns and their fields have names"),
        ("day > 'soon'", "'soon' is no date32"),
        ("title in ('a', 1)", "is not a condition"),
        ("year == 1180591620717411303424", "is not a condition"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Filter(text, TABLE.schema)


def test_a_file_whose_own_type_is_narrower_is_filtered_as_the_others() -> None:
    condition = Filter("meta.none == 1 or title in ('a',)", pa.schema({"meta": WIDE, "title": pa.string()}))
    table = pa.table({"title": pa.nulls(3), "meta": TABLE["meta"]})
    assert condition.mask(table).to_pylist() == [False] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [("title > 5", "cannot be computed"), ("title", "must evaluate to bool"), ("meta.none == 1", "cannot be computed")],
)
def test_what_cannot_be_computed_is_one_line(text: str, message: str) -> None:
    condition = Filter(text, TABLE.schema)
    with pytest.raises(UsageError, match=message) as raised:
        condition.mask(TABLE.select(condition.columns))
    assert "\n" not in str(raised.value)
