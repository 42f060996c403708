"""`-o vecs.parquet`: the vectors of the Arrow output, and the same promises."""

import errno
import os
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, embed
from fastvec.encoder import Encoder as LoadedEncoder
from fastvec.errors import DiskFullError, OutputError, RefusedError
from fastvec.output import parquet_file
from fastvec.output.verify import verify
from fastvec.settings import resolve_settings
from tests import ARTICLES
from tests.helpers.corpora import write_parquet
from tests.helpers.outputs import contents, read_output

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture
def parquet(output: Path) -> Path:
    return output.with_suffix(".parquet")


def test_it_has_the_rows_of_the_arrow_output(encoder: Encoder, output: Path, parquet: Path) -> None:
    embed([ARTICLES], output, encoder=encoder, column="text", keep=["title"])
    report = embed([ARTICLES], parquet, encoder=encoder, column="text", keep=["title"])
    expected = read_output(output)
    found = pq.read_table(parquet)
    assert found.equals(expected)
    assert found.schema.metadata == expected.schema.metadata
    assert pl.read_parquet(parquet)["title"].to_list() == expected["title"].to_pylist()
    assert (report.rows, report.output) == (300, str(parquet))
    assert verify(parquet).return_code == 0
    assert {path.name for path in output.parent.iterdir()} == {"vecs.arrow", "vecs.parquet"}


def test_the_same_command_again_does_not_load_the_model(
    encoder: Encoder, tiny_llama: Path, parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed([ARTICLES], parquet, encoder=encoder, column="text")
    before = contents(parquet.parent)

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(LoadedEncoder, "__init__", load)
    settings = resolve_settings(model=tiny_llama, device="cpu")  # the dtype is that of the finished run
    report = embed([ARTICLES], parquet, encoder=settings, column="text")
    assert str(report) == f"{parquet} is already finished: 300 rows"
    assert report.tokens > 0
    with pytest.raises(RefusedError, match=r"vecs\.parquet was started for 300 rows of these inputs"):
        embed([ARTICLES], parquet, encoder=encoder, column="text", limit=7)
    with pytest.raises(RefusedError, match=r"vecs\.parquet belongs to another job: pooling was "):
        embed([ARTICLES], parquet, encoder=resolve_settings(model=tiny_llama, pooling="last"), column="text")
    assert contents(parquet.parent) == before


def test_files_of_others_are_not_replaced(encoder: Encoder, parquet: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), parquet)
    with pytest.raises(RefusedError, match=r"vecs\.parquet is not a finished fastvec output; replace it with --overw"):
        embed([ARTICLES], parquet, encoder=encoder, column="text", limit=3)
    assert embed([ARTICLES], parquet, encoder=encoder, column="text", limit=3, overwrite=True).rows == 3


@pytest.mark.parametrize("writes", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_full_disk_during_the_conversion_loses_no_row(
    encoder: Encoder, parquet: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """The Arrow file remains, and the same command converts it, to the same bytes."""
    embed([ARTICLES], parquet, encoder=encoder, column="text")
    expected = contents(parquet.parent)
    parquet.unlink()
    left = [writes]

    def full(fd: int, position: int, data: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.pwrite(fd, data, position)

    with monkeypatch.context() as patch:
        patch.setattr(parquet_file, "write_at", full)
        with pytest.raises(
            DiskFullError, match=r"no space left for .*vecs\.parquet; its first 300 rows are safe: make"
        ):
            embed([ARTICLES], parquet, encoder=encoder, column="text")
    assert contents(parquet.parent).keys() == {"vecs.parquet.part", "vecs.parquet.journal"}
    report = embed([ARTICLES], parquet, encoder=encoder, column="text")
    assert (report.rows, report.resumed_rows) == (300, 300)
    assert contents(parquet.parent) == expected


def test_a_column_that_parquet_has_not_is_refused_before_the_model_is_loaded(
    tiny_llama: Path, tmp_path: Path, parquet: Path
) -> None:
    waits = pa.array([(1, 2, 3), None], pa.month_day_nano_interval())
    corpus = tmp_path / "corpus.arrow"
    table = pa.table({"text": ["a", "b"], "wait": waits})
    with pa.ipc.new_file(str(corpus), table.schema) as file:
        file.write_table(table)
    settings = resolve_settings(model=tiny_llama, device="cpu")
    with pytest.raises(OutputError, match=r"^column wait is month_day_nano_interval, which Parquet cannot store: drop"):
        embed([corpus], parquet, encoder=settings, keep=["wait"])
    assert not parquet.exists()


def test_a_pattern_skips_what_the_run_writes(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "texts.parquet", pa.table({"text": ["a", "b"]}))
    Path("vecs.parquet.tmp").write_text("left by a killed run")
    for _ in range(2):
        assert embed(["*.parquet*"], "vecs.parquet", encoder=encoder, column="text").rows == 2
