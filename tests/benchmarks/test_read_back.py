from pathlib import Path

from click.testing import CliRunner

from benchmarks import read_back


def test_reading_back_is_compared_with_writing(tmp_path: Path) -> None:
    done = CliRunner().invoke(read_back.main, ["--megabytes", "1", "--rounds", "1", "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("17 MB, 1 rounds, ")
    names = ("written", "read back from the disk", "read back from the cache", "a job of more than")
    assert [line.startswith(name) for line, name in zip(done.output.splitlines()[1:], names, strict=True)] == [True] * 4
    assert list(tmp_path.iterdir()) == []
