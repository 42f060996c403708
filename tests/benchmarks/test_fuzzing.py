import os
import re
import signal
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from benchmarks import fuzz, hostile_files
from benchmarks.fuzzing import trial
from benchmarks.fuzzing.mutations import mutated, with_edited_footer
from benchmarks.fuzzing.seeds import seeds
from fastvec.corpus.formats.thrift import Decoder


def test_a_footer_is_encoded_as_it_was_read() -> None:
    """By its fields: the bytes may differ, because field numbers have a short form too."""

    def footer(content: bytes) -> object:
        return Decoder(content, len(content) - 8 - int.from_bytes(content[-8:-4], "little")).struct()

    for name, content in seeds().items():
        if name.endswith(".parquet"):
            assert footer(with_edited_footer(content, lambda footer: None)) == footer(content)


def test_changes_are_those_of_the_seed() -> None:
    content = seeds()["plain.parquet"]
    changed = [[mutated(content, [content], random) for _ in range(50)] for random in (Random(1), Random(1))]
    assert changed[0] == changed[1]
    assert len(set(changed[0])) > 40


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_folder_is_swept(tmp_path: Path) -> None:
    for name in ("rows.csv", "plain.parquet"):
        (tmp_path / name).write_bytes(seeds()[name])
    (tmp_path / "bad.parquet").write_bytes(seeds()["plain.parquet"][:-1])
    done = CliRunner().invoke(hostile_files.main, [str(tmp_path)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["refused", "read", "read", "read", "read", "read"]
    assert lines[-1] == "5 read, 1 refused"


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("defect", "finding"), [(ZeroDivisionError("x"), "FAILED: ZeroDivisionError: x"), (None, "CRASHED: SIGKILL")]
)
def test_fuzzing_reports_what_is_no_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: Exception | None, finding: str
) -> None:
    def broken(*_: object) -> None:
        if defect is not None:
            raise defect
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(trial, "read_whole", broken)
    done = CliRunner().invoke(fuzz.main, ["--minutes", "0", "--findings", str(tmp_path / "found")])
    assert done.exit_code == 1
    assert re.search(rf"^FINDING dictionary\.parquet, \d+ bytes: {finding}", done.output), done.output
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["001-dictionary.parquet"]
    assert f"{len(seeds())} executions in " in done.output
