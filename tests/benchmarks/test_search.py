import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import search

SMALL = ["--rows", "300", "--dims", "16", "--queries", "1", "--queries", "3", "--rounds", "1"]


def test_all_contestants_find_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    result = tmp_path / "results.json"
    done = CliRunner().invoke(search.main, [*SMALL, "--folder", str(tmp_path / "work"), "-o", str(result)])
    assert done.exit_code == 0, done.output
    names = ["ceiling", "fastvec", "NumPy", "FAISS flat", "FAISS flat, BLAS"]
    found = json.loads(result.read_text())["results"]
    assert [(one["queries"], one["contestant"]) for one in found] == [(n, name) for n in (1, 3) for name in names]
    assert all(len(one["seconds"]) == 1 for one in found)
    assert list((tmp_path / "work").iterdir()) == []


def test_other_rows_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "by_numpy", lambda array, step, queries: queries[:, :10] * 0)
    done = CliRunner().invoke(search.main, [*SMALL, "--folder", str(tmp_path)])
    assert done.exit_code == 1
    assert "NumPy finds other rows than fastvec" in done.output


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_streamed_output_is_searched_twice(tmp_path: Path, dtype: str) -> None:
    done = CliRunner().invoke(search.main, [*SMALL, "--folder", str(tmp_path), "--streamed", "--vector-dtype", dtype])
    assert done.exit_code == 0, done.output
    begins = [line.partition(":")[0] for line in done.output.splitlines()[1:]]
    assert begins == [f"{n} queries {where}" for n in (1, 3) for where in ("from the disk", "again")]
