"""The commands `fastvec dedup` and `fastvec neighbors`: reports, refusals, and what is left when they end early."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastvec.pairs.products import Products
from fastvec.pairs.progress import PairProgress
from tests.cli.conftest import Run
from tests.cli.conftest import fastvec as fastvec
from tests.helpers.outputs import contents
from tests.pairs.cases import clustered, normalized, save

VECTORS = np.repeat(normalized(np.eye(8)[:6]), [1, 3, 1, 2, 1, 1], axis=0)  # rows 1 to 3 are equal, and rows 5 and 6


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "v.arrow", VECTORS, missing=[8])


@pytest.mark.usefixtures("saved")
def test_reports_say_what_was_found(fastvec: Run) -> None:
    done = fastvec("dedup", "v.arrow", "-o", "g.parquet", "--threshold", "0.95")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith("9 rows to g.parquet in ")
    assert done.stderr.partition(" s: ")[2] == (
        "3 near-duplicates in 2 groups at 0.95, the largest has 3 rows; 6 rows are kept, 1 of them without a vector\n"
    )
    assert pq.read_table("g.parquet")["group"].to_pylist() == [0, 1, 1, 1, 4, 5, 5, 7, None]

    report = json.loads(fastvec("dedup", "v.arrow", "-o", "h.parquet", "--threshold", "0.95", "--json").stdout)
    assert report.pop("seconds") > 0
    counts = {"rows": 9, "kept": 6, "groups": 2, "largest": 3, "pairs": 4, "no_vector": 1, "removed": 3}
    assert report == {"output": "h.parquet", "threshold": 0.95, **counts}

    shutil.copy("v.arrow", "w.arrow")
    done = fastvec("dedup", "v.arrow", "-o", "clean.parquet", "--threshold", "0.95", "--against", "w.arrow")
    assert " s: 8 are near one of 9 others at 0.95; 1 rows are kept" in done.stderr

    done = fastvec("neighbors", "v.arrow", "-o", "n.parquet", "-k", "2", "--threshold", "0.5")
    assert done.stderr.startswith("8 neighbors of 9 rows to n.parquet in ")
    assert done.stderr.endswith(" s; 1 without a vector\n")
    assert fastvec("neighbors", "v.arrow", "-o", "m.parquet", "--quiet") == (0, "", "")


DEDUP = ("dedup", "v.arrow", "-o", "g.parquet", "--threshold")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ((*DEDUP, "0"), 2, "threshold 0.0 is out of range: a cosine similarity above 0, up to 1"),
        ((*DEDUP, "1.01"), 2, "threshold 1.01 is out of range"),
        ((*DEDUP, "nan"), 2, "threshold nan is out of range"),
        ((*DEDUP[:4],), 2, "Missing option '--threshold'"),
        ((*DEDUP, "1", "--vector-column", "title"), 2, "no column of vectors named 'title'"),
        ((*DEDUP, "1", "--against", "v.arrow", "--pairs", "p.parquet"), 2, "leave it or --against out"),
        ((*DEDUP, "1", "--pairs", "./g.parquet"), 2, "g.parquet is given twice: choose another name"),
        ((*DEDUP, "1", "--pairs", "v.arrow", "--overwrite"), 2, "v.arrow is a file that is read"),
        ((*DEDUP, "1", "--pairs", "p.csv"), 1, "p.csv ends in none of .parquet, .arrow, .jsonl"),
        ((*DEDUP, "1", "--pairs", "old.parquet"), 4, "old.parquet exists: replace it with --overwrite"),
        ((*DEDUP, "1", "--against", "./v.arrow"), 2, "v.arrow would be compared with itself: leave it out on a side"),
        ((*DEDUP, "1", "--against", "old.parquet"), 1, "old.parquet"),
        ((*DEDUP, "1", "--against", "other.arrow"), 1, "other.arrow cannot be compared with v.arrow"),
        (("dedup", "nowhere.arrow", "-o", "g.parquet", "--threshold", "1"), 1, "nowhere.arrow cannot be read"),
        (("dedup", "v.arrow", "-o", "old.parquet", "--threshold", "1"), 4, "old.parquet exists"),
        (("neighbors", "v.arrow", "-o", "n.parquet", "-k", "0"), 2, "k 0 is out of range: the minimum is 1"),
        (("neighbors", "v.arrow", "-o", "n.parquet", "--threshold", "-2"), 2, "threshold -2.0 is out of range"),
        (("neighbors", "v.arrow", "-o", "old.parquet"), 4, "old.parquet exists"),
        (("neighbors", "v.arrow", "-o", "nowhere/n.parquet"), 1, "nowhere is not a folder"),
        (("neighbors", "v.arrow", "-o", "v.arrow", "--overwrite"), 2, "v.arrow is a file that is read"),
    ],
)
def test_refusals_are_one_line_and_change_nothing(
    fastvec: Run, saved: Path, arguments: tuple[str, ...], exit_code: int, message: str
) -> None:
    (saved.parent / "old.parquet").write_bytes(b"mine")
    save(saved.parent / "other.arrow", clustered(seed=0, rows=3), model="other")
    before = contents(saved.parent)
    done = fastvec(*arguments)
    assert (done.exit_code, done.stdout) == (exit_code, "")
    assert done.stderr.startswith("fastvec: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert contents(saved.parent) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["dedup", "neighbors"])
def test_a_signal_leaves_no_file_and_the_old_one(
    fastvec: Run, saved: Path, command: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    (saved.parent / "old.parquet").write_bytes(b"mine")
    before, compared = contents(saved.parent), Products.similarities

    def interrupted(self: Products, left: Any, right: Any) -> Any:
        signal.raise_signal(number)
        return compared(self, left, right)

    monkeypatch.setattr(Products, "similarities", interrupted)
    options = ("--threshold", "0.5", "--pairs", "p.parquet") if command == "dedup" else ()
    done = fastvec(command, "v.arrow", "-o", "old.parquet", "--overwrite", *options)
    assert done == (128 + number, "", "fastvec: stopped\n")
    assert contents(saved.parent) == before


def test_progress_shows_the_rate_and_the_time_left() -> None:
    progress = PairProgress(pairs=250_000_000, total=1_000_000_000, seconds=20)
    assert str(progress) == "25% of 1,000,000,000 pairs of rows, 12.5 million/s, 0:01:00 left"
    assert progress.share == (250_000_000, 1_000_000_000)
    assert str(PairProgress(pairs=0, total=0, seconds=0)).startswith("0% of 0 pairs")
