"""Reads the files in `tests/data/format-1`, written by version 0.1.0 before its modules moved into packages."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec.output.convert import convert
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


def test_a_parquet_output_without_checksums_of_its_row_groups_is_verified(earlier: Path) -> None:
    """Its pages and metadata have checksums: what is damaged in these is found, and told."""
    output = earlier / "finished.parquet"
    verified = verify(output)
    assert verified.return_code == 0
    assert [check.name for check in verified.checks][:3] == ["file", "metadata", "pages"]
    assert (inspect(output).rows, inspect(output).vector_dtype) == (CHUNKS * ROWS, "int8")
    assert convert(output, earlier / "copy.parquet").rows == CHUNKS * ROWS
    assert verify(earlier / "copy.parquet").return_code == 0

    content = output.read_bytes()
    at = pq.ParquetFile(output).metadata.row_group(0).column(2).data_page_offset + 60
    output.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    failed = {check.name: check.detail for check in verify(output).checks if not check.passed}
    assert failed["pages"].startswith(f"{output}: row group 0 cannot be read: could not verify page integrity, CRC ")
    output.write_bytes(content.replace(b'"tokens": 301', b'"tokens": 302'))
    assert "has a damaged footer" in verify(output).checks[0].detail


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
