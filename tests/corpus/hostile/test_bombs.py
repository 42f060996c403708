"""Files that claim more than a machine has: they are refused, or read, within a bound on memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastvec.corpus.formats.json_lines import MOST_FIELDS, SAMPLE_LINES
from tests import ROOT
from tests.corpus.hostile.bombs import READ, REFUSED, lines_of_keys, many_groups, one_long_text
from tests.helpers.processes import environment

MIB = 1 << 20
# What reading may take beyond the imports: a few chunks and buffers, and the libraries' pages, which differ between
# machines; 51 MiB were seen. The files claim or contain more than twice as much.
BOUND = 128 * MIB
# A text is in memory as a page, as a value (in a buffer that grows by doubling), in its chunk, and here for its digest.
TEXT_COPIES = 6
COMMAND_COPIES = TEXT_COPIES + 3  # and as a string, in the tokenizer, and in the chunk that waits to be written
SCRIPT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from benchmarks.fuzzing.trial import Allowance, trial

bound = int(sys.argv[2])
for path in Path(sys.argv[1]).iterdir():
    outcome = trial(path, column="text", keep=json.loads(sys.argv[3]), allowance=Allowance(memory=bound, limit=1 << 32))
    print(json.dumps({"name": path.name, **asdict(outcome)}))
"""


def outcomes(folder: Path, bound: int, keep: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Read every file of a folder, each in a process, and return how that ended; `keep` None are all columns."""
    command = [sys.executable, "-c", SCRIPT, str(folder), str(bound), json.dumps(keep)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    return {outcome["name"]: outcome for outcome in map(json.loads, done.stdout.splitlines())}


def test_a_file_that_claims_too_much_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    for name, (write, _) in REFUSED.items():
        (tmp_path / name).write_bytes(write())

    found = outcomes(tmp_path, BOUND)

    assert {name: outcome["status"] for name, outcome in found.items()} == dict.fromkeys(REFUSED, "refused")
    for name, (_, message) in REFUSED.items():
        assert found[name]["reason"].startswith(f"{tmp_path / name}: ")
        assert message in found[name]["reason"]


def test_small_files_of_much_content_are_read_in_little_memory(tmp_path: Path) -> None:
    for name, (write, _) in READ.items():
        (tmp_path / name).write_bytes(write())

    found = outcomes(tmp_path, BOUND)

    assert {name: (outcome["status"], outcome["rows"], outcome["reason"]) for name, outcome in found.items()} == {
        name: ("read", rows, "") for name, (_, rows) in READ.items()
    }


@pytest.mark.parametrize("nested", [False, True])
def test_lines_each_with_keys_of_its_own_are_read_in_little_memory(tmp_path: Path, nested: bool) -> None:
    (tmp_path / "keys.jsonl").write_bytes(lines_of_keys(1000, 110, nested=nested))

    (outcome,) = outcomes(tmp_path, BOUND, keep=[]).values()

    assert (outcome["status"], outcome["rows"], outcome["reason"]) == ("read", 1000, "")


@pytest.mark.slow
def test_keys_that_are_kept_take_the_memory_of_a_bounded_number(tmp_path: Path) -> None:
    (tmp_path / "keys.jsonl").write_bytes(lines_of_keys(1000, 110, nested=True))
    fields = MOST_FIELDS + SAMPLE_LINES * 110
    chunk = 1000 * fields * 9  # an integer and its bits of validity, rounded up

    (outcome,) = outcomes(tmp_path, BOUND + 2 * chunk).values()  # as batches, and as one chunk

    assert (outcome["status"], outcome["rows"], outcome["reason"]) == ("read", 1000, "")


@pytest.mark.slow
def test_a_text_of_50_mb_and_20_000_row_groups_are_read(tmp_path: Path) -> None:
    (tmp_path / "long.parquet").write_bytes(one_long_text(50 * MIB))
    (tmp_path / "groups.parquet").write_bytes(many_groups(20_000))

    found = outcomes(tmp_path, BOUND + TEXT_COPIES * 50 * MIB)

    rows = {name: (outcome["rows"], outcome["reason"]) for name, outcome in found.items()}
    assert rows == {"long.parquet": (3, ""), "groups.parquet": (60_000, "")}


@pytest.mark.slow
def test_the_command_embeds_a_text_of_50_mb_in_little_more_memory_than_short_ones(tmp_path: Path) -> None:
    def peak(size: int) -> int:
        path = tmp_path / f"{size}.parquet"
        path.write_bytes(one_long_text(size))
        command = [sys.executable, "-m", "fastvec", "embed", str(path), "-o", f"{path}.arrow", "--json"]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
        report = json.loads(done.stdout)
        assert (report["rows"], report["nulls"], report["errors"]) == (3, 0, 0)
        return int(report["peak_memory_bytes"])

    assert peak(50 * MIB) - peak(50) < BOUND + COMMAND_COPIES * 50 * MIB
