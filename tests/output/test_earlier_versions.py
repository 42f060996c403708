"""Reads the files in `tests/data/format-1`, written by version 0.1.0 before its modules moved into packages."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from fastvec.output.inspect import inspect
from fastvec.output.verify import verify
from fastvec.output.writer import Writer
from tests import ROOT
from tests.helpers.outputs import CHUNKS, ROWS, make_job, run_job

EARLIER = ROOT / "tests/data/format-1"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EARLIER, tmp_path / "earlier"))


def test_a_finished_output_is_verified_read_and_left_alone(earlier: Path) -> None:
    output = earlier / "finished.arrow"
    content = output.read_bytes()
    assert verify(output).return_code == 0
    assert (inspect(output).rows, inspect(output).vector_dtype) == (CHUNKS * ROWS, "int8")
    assert run_job(output, dtype="int8") is None
    assert output.read_bytes() == content


def test_an_unfinished_output_resumes_to_the_same_file(earlier: Path, tmp_path: Path) -> None:
    output, whole = earlier / "unfinished.arrow", tmp_path / "whole.arrow"
    opened = Writer.open(output, make_job())
    opened.close()
    assert opened.chunks == 3
    run_job(output)
    run_job(whole)
    assert output.read_bytes() == whole.read_bytes()
    with pa.memory_map(str(output)) as source:
        assert pa.ipc.open_file(source).num_record_batches == CHUNKS
