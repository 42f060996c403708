import datetime
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from fastvec.errors import UsageError
from fastvec.maps.colors import GREY, PALETTE, STEPS, cluster_colors, column_colors, darkened
from tests.helpers.processes import environment


def column(values: list[object], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


def test_the_most_frequent_values_have_colors_and_the_others_are_grey() -> None:
    values = [chr(97 + i) for i in range(12) for _ in range(20 - i)]
    coloring = column_colors("kind", column([*values, None, ""]))
    assert coloring.names == (*"abcdefghi", "3 other values, no value")
    assert coloring.counts == (20, 19, 18, 17, 16, 15, 14, 13, 12, 11 + 10 + 9 + 2)
    assert coloring.palette == (*PALETTE, GREY)
    assert [coloring.of_points[values.index(letter)] for letter in "abi"] == [0, 1, 8]
    assert [coloring.of_points[values.index(letter)] for letter in "jkl"] == [9, 9, 9]
    assert coloring.of_points[-2:].tolist() == [9, 9]


def test_few_values_need_no_grey() -> None:
    coloring = column_colors("is_new", column([True, False, True]))
    assert (coloring.names, coloring.counts, coloring.ends) == (("True", "False"), (2, 1), ())
    assert (coloring.palette, coloring.of_points.tolist()) == (PALETTE[:2], [0, 1, 0])


def test_a_column_without_values_is_grey() -> None:
    coloring = column_colors("empty", column([None, None]))
    assert (coloring.names, coloring.palette) == (("no value",), (GREY,))


def test_long_names_of_values_are_one_short_line() -> None:
    assert column_colors("kind", column(["a\nb " + "c" * 100])).names == ("a b " + "c" * 35 + "…",)


def test_numbers_are_on_a_scale_between_percentiles() -> None:
    coloring = column_colors("size", column([*range(100), 10**9, None, float("nan")], pa.float64()))
    assert coloring.ends == ("≤ 2", "≥ 98")  # the 2nd and the 98th of 101 values
    assert coloring.of_points[:3].tolist() == [0, 0, 0]
    assert coloring.of_points[50] == STEPS // 2
    assert coloring.of_points[98:].tolist() == [STEPS - 1] * 3 + [STEPS] * 2
    assert (len(coloring.palette), coloring.palette[-1]) == (STEPS + 1, GREY)
    assert (np.diff(coloring.of_points[:101]) >= 0).all()


def test_dates_and_times_are_on_a_scale() -> None:
    days = [datetime.date(2020, 1, 1) + datetime.timedelta(days=i) for i in range(20)]
    assert column_colors("day", column(list(days))).ends == ("2020-01-01", "2020-01-20")
    times = [datetime.datetime(2020, 1, 1, i) for i in range(20)]
    coloring = column_colors("time", column([*times, None]))
    assert coloring.ends == ("2020-01-01 00:00:00", "2020-01-01 19:00:00")
    assert coloring.of_points[-1] == STEPS
    integers = column_colors("year", column(list(range(1990, 2010)), pa.int32()))
    assert integers.ends == ("1990", "2009")


NANOSECONDS = """
import sys
class WithoutPandas:
    def find_spec(self, name, path=None, target=None):
        if name == "pandas":
            raise ImportError(name)
sys.meta_path.insert(0, WithoutPandas())
import pyarrow as pa
from fastvec.maps.captions import shown_values
from fastvec.maps.colors import column_colors
whole, part = 10**9, 10**9 + 7
for kind in (pa.timestamp("ns"), pa.timestamp("ns", "UTC"), pa.time64("ns"), pa.duration("ns")):
    print(shown_values(pa.chunked_array([pa.array([whole, part, None], kind)])))
many = pa.chunked_array([pa.array(range(0, 300, 7), pa.timestamp("ns"))])
print(column_colors("at", many[:3]).counts, len(column_colors("at", many).ends))
"""


def test_nanoseconds_are_shown_without_pandas() -> None:
    command = [sys.executable, "-c", NANOSECONDS]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "['1970-01-01 00:00:01', '1970-01-01 00:00:01.000000007', '']",
        "['1970-01-01 00:00:01Z', '1970-01-01 00:00:01.000000007Z', '']",
        "['00:00:01', '00:00:01.000000007', '']",
        "['0:00:01', '0:00:01', '']",
        "(1, 1, 1) 2",
    ]


def test_lists_have_no_colors() -> None:
    with pytest.raises(UsageError, match=r"^--color tags is a column of list<.*>: choose one of strings, numbers"):
        column_colors("tags", column([["a"]]))


def test_neighboring_clusters_have_different_colors() -> None:
    centers = np.array([[float(i), 0.0] for i in range(30)])
    coloring = cluster_colors(np.arange(30), centers)
    assert len(set(coloring.of_points.tolist())) == len(PALETTE)
    assert (np.diff(coloring.of_points) != 0).all()


def test_labels_are_legible_on_white() -> None:
    """WCAG 2.2 asks a contrast of 3 for bold text of this size or larger."""
    for color in PALETTE:
        dark = darkened(color)
        parts = [int(dark[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) >= 3, color
