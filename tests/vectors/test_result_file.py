"""A result file is whole or not there, in each format."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from fastvec.errors import OutputError, RefusedError
from fastvec.vectors.result_file import require_result_file, result_file

TABLES = [pa.table({"row": [1, 2], "title": ["a\n", "ü"]}), pa.table({"row": [3], "title": pa.nulls(1, pa.string())})]


def read(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    with ipc.open_file(path) as file:
        return list(file.read_all().to_pylist())


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl"])
def test_tables_are_appended_and_appear_at_the_end(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"hits{suffix}"
    target.write_text("old")
    with result_file(target, TABLES[0].schema) as write:
        for table in TABLES:
            write(table)
        assert target.read_text() == "old"
    assert read(target) == [row for table in TABLES for row in table.to_pylist()]
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_no_number_is_null_in_json_lines_at_any_depth(tmp_path: Path) -> None:
    nan, infinite = float("nan"), float("inf")
    table = pa.table({"plain": [nan, 1.0], "list": [[nan, 1.0], []], "struct": [{"a": -infinite}, None]})
    with result_file(tmp_path / "hits.jsonl", table.schema) as write:
        write(table)
    assert read(tmp_path / "hits.jsonl") == [
        {"plain": None, "list": [None, 1.0], "struct": {"a": None}},
        {"plain": 1.0, "list": [], "struct": None},
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl"])
def test_a_failure_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    def fail() -> None:
        with result_file(tmp_path / f"hits{suffix}", TABLES[0].schema) as write:
            write(TABLES[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"hits\.csv ends in none of \.parquet, \.arrow, \.jsonl"):
        require_result_file(tmp_path / "hits.csv", overwrite=True)
    with pytest.raises(OutputError, match="folder"):
        require_result_file(tmp_path / "none" / "hits.arrow", overwrite=True)
    (tmp_path / "hits.arrow").write_text("old")
    with pytest.raises(RefusedError, match="replace it with --overwrite"):
        require_result_file(tmp_path / "hits.arrow", overwrite=False)
    require_result_file(tmp_path / "hits.arrow", overwrite=True)
