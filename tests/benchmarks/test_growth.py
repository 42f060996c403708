"""The fits and runs of `benchmarks.growth`; real timings are not checked."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from benchmarks import growth
from benchmarks.growth import Point, exponent


def points(*pairs: tuple[float, float], work: int = 1) -> list[Point]:
    return [Point(x=x, work=work, seconds=seconds, memory=1) for x, seconds in pairs]


def test_an_exponent_is_the_slope_of_the_logarithms() -> None:
    assert exponent("rows", points((10, 3), (100, 30), (1000, 300))) == pytest.approx(1)
    assert exponent("model", points((10, 3), (100, 300))) == pytest.approx(2)


def test_with_the_length_it_is_of_the_time_a_token() -> None:
    flat = [Point(x=length, work=length * 7, seconds=length * 0.1, memory=1) for length in (16, 64, 256)]
    assert exponent("length", flat) == pytest.approx(0)


@pytest.mark.slow
def test_rows_are_counted_and_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": ["The whale dives into the sea."] * 20}), corpus)
    monkeypatch.setattr(growth, "ROWS", (20, 2000, 4000))
    arguments = [str(corpus), "-o", str(tmp_path / "out"), "--part", "rows", "--most-rows", "2000"]
    done = CliRunner().invoke(growth.main, arguments)
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out" / "growth-rows.json").read_text())
    assert [point["x"] for point in document["points"]] == [20, 2000]
    assert all(point["memory"] > 10**8 for point in document["points"])
    assert (tmp_path / "out" / "growth-rows.png").stat().st_size > 0
