"""Files with a damage at every place: they are read, or refused in one line. The process never dies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.fuzzing.seeds import seeds, table
from tests.helpers.corpora import write_parquet
from tests.helpers.damaged import read_damaged

COLUMNAR = [name for name in seeds() if name.endswith((".parquet", ".arrow", ".stream"))]
COMPRESSED = ["rows.jsonl.gz", "rows.jsonl.zst"]
LINES = ["rows.jsonl", "rows.csv", "rows.tsv", "rows.txt"]


def cases(few: dict[str, int], every: Sequence[str], step: int) -> list[Any]:
    """Return the seeds `few` with the step between the places that `make test` tries, and slow cases of `every` one."""
    return [*few.items(), *(pytest.param(name, step, marks=pytest.mark.slow) for name in every)]


def seed(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(seeds()[name])
    return path


def require_refused_in_one_line(path: Path, outcomes: dict[int, dict[str, str]]) -> None:
    for place, outcome in outcomes.items():
        if "error" in outcome:
            message = outcome["error"]
            assert message.isprintable(), (path.name, place)
            assert path.name in message, (path.name, place)


@pytest.mark.parametrize(
    ("name", "step"), cases({"plain.parquet": 49, "rows.stream": 97, "rows.jsonl.gz": 9}, [*COLUMNAR, *COMPRESSED], 1)
)
def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path, name: str, step: int) -> None:
    path = seed(tmp_path, name)

    outcomes = read_damaged(path, "cut", step)

    assert "digest" in outcomes.pop(-1)
    assert [place for place, outcome in outcomes.items() if "error" not in outcome] == []
    require_refused_in_one_line(path, outcomes)


@pytest.mark.parametrize(
    ("name", "step"),
    cases({"dictionary.parquet": 499, "view.arrow": 499, "rows.jsonl": 99}, [*COLUMNAR, *COMPRESSED, *LINES], 37),
)
def test_a_flipped_bit_is_survived(tmp_path: Path, name: str, step: int) -> None:
    """Without a checksum, it may change a text, or a number of the footer that means other rows."""
    path = seed(tmp_path, name)

    outcomes = read_damaged(path, "flip", step)

    assert "digest" in outcomes[-1]
    require_refused_in_one_line(path, outcomes)


@pytest.mark.parametrize("step", [61, pytest.param(3, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_parquet_with_checksums_changes_no_row(tmp_path: Path, step: int) -> None:
    """In pages, their headers and the footer: the footer has no checksum, but it counts the rows twice."""
    options = {"use_dictionary": False, "compression": "none", "write_page_checksum": True, "write_statistics": False}
    rows = table().select(["id", "text"])
    path = write_parquet(tmp_path / "c.parquet", rows, group_rows=4, store_schema=False, **options)
    assert pq.read_metadata(path).num_row_groups == 3

    outcomes = read_damaged(path, "flip", step)

    whole = outcomes.pop(-1)["digest"]
    assert {outcome["digest"] for outcome in outcomes.values() if "digest" in outcome} == {whole}
    assert any("CRC" in outcome.get("error", "") for outcome in outcomes.values())
    require_refused_in_one_line(path, outcomes)
