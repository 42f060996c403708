from pathlib import Path

import pytest

from tests.helpers.outputs import contents, run_job


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The path of an output in an empty folder."""
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "vecs.arrow"


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, bytes]:
    """The files of an uninterrupted run."""
    (tmp_path / "uninterrupted").mkdir()
    run_job(tmp_path / "uninterrupted" / "vecs.arrow")
    return contents(tmp_path / "uninterrupted")
