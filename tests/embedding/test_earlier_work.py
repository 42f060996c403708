"""A job whose output path has earlier work: the same job's is kept, another's is refused."""

import os
import re
import shlex
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import fastvec.encoder
from fastvec import Encoder, embed
from fastvec.errors import InterruptedRunError, RefusedError
from fastvec.report import Progress
from fastvec.settings import EncoderSettings, resolve_settings
from tests import ARTICLES
from tests.helpers.corpora import texts, write_parquet
from tests.helpers.outputs import read_output


def test_a_finished_job_is_left_alone_without_loading_the_model(
    encoder: Encoder, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed([ARTICLES], output, encoder=encoder, column="text", limit=20)
    before = output.stat().st_mtime_ns
    monkeypatch.setattr(fastvec.encoder, "Encoder", None)
    report = embed([ARTICLES], output, encoder=encoder.settings, column="text", limit=20)
    assert (report.already_finished, report.rows, report.return_code) == (True, 20, 0)
    assert str(report) == f"{output} is already finished: 20 rows"
    assert output.stat().st_mtime_ns == before


@pytest.mark.parametrize("stopped", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("small_chunks")
def test_a_dtype_that_nobody_chose_is_that_of_the_earlier_run(
    tiny_llama: Path, output: Path, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(faster: str) -> EncoderSettings:
        monkeypatch.setattr("fastvec.settings.resolve_dtype", lambda device: faster)
        return resolve_settings(tiny_llama, device="cpu")

    # three chunks, because some CPUs are slow in bfloat16
    few: dict[str, Any] = {"column": "text", "limit": 90}
    seen: list[Progress] = []
    with pytest.raises(InterruptedRunError) if stopped else nullcontext():
        embed(
            [ARTICLES],
            output,
            encoder=settings("float32"),
            **few,
            progress=seen.append,
            stop_signal=lambda: 15 if stopped and seen else None,
        )
    for chosen in (resolve_settings(tiny_llama, device="cpu", dtype="bfloat16"), replace(settings("bfloat16"), dims=8)):
        with pytest.raises(RefusedError, match='dtype was "float32", now "bfloat16"'):
            embed([ARTICLES], output, encoder=chosen, **few)

    report = embed([ARTICLES], output, encoder=settings("bfloat16"), **few)
    assert (report.rows, bool(report.resumed_rows), report.already_finished) == (90, stopped, not stopped)
    assert read_output(output).schema.metadata[b"fastvec.dtype"] == b"float32"
    embed([ARTICLES], output, encoder=settings("bfloat16"), **few, overwrite=True)
    assert read_output(output).schema.metadata[b"fastvec.dtype"] == b"bfloat16"


def test_another_jobs_output_is_refused_naming_what_differs(encoder: Encoder, tiny_llama: Path, output: Path) -> None:
    embed([ARTICLES], output, encoder=encoder, column="text", limit=5)
    other = resolve_settings(tiny_llama, dtype="float32", device="cpu", pooling="last", dims=8)
    with pytest.raises(RefusedError, match=r"pooling.*mean.*last.*--overwrite") as refused:
        embed([ARTICLES], output, encoder=other, column="text", limit=5)
    assert "dims" in str(refused.value)
    assert refused.value.exit_code == 4
    assert read_output(output)["embedding"].type.list_size == 64

    embed([ARTICLES], output, encoder=other, column="text", limit=5, overwrite=True)
    assert read_output(output)["embedding"].type.list_size == 8


@pytest.mark.parametrize(("before", "after"), [(5, None), (20, 5)])
def test_another_limit_is_said_to_be_one(encoder: Encoder, output: Path, before: int | None, after: int | None) -> None:
    embed([ARTICLES], output, encoder=encoder, column="text", limit=before)
    rows = after or pq.read_metadata(ARTICLES).num_rows
    message = rf"was started for {before} rows of these inputs, but this command asks for {rows} \(see --limit\)"
    with pytest.raises(RefusedError, match=message):
        embed([ARTICLES], output, encoder=encoder, column="text", limit=after)


def test_changed_input_is_another_job(encoder: Encoder, tmp_path: Path, output: Path) -> None:
    embed([write_parquet(tmp_path / "corpus.parquet", texts(["a", "b"]))], output, encoder=encoder)
    with pytest.raises(RefusedError, match="inputs"):
        embed([write_parquet(tmp_path / "corpus.parquet", texts(["a", "c", "d"]))], output, encoder=encoder)


def test_a_copy_of_an_input_resumes_with_the_time_of_the_first(
    encoder: Encoder, tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tools do not keep the modification time of what they copy."""
    monkeypatch.chdir(tmp_path)
    corpus = write_parquet(Path("the corpus.parquet"), texts(["a", "b"]))
    embed([corpus], output, encoder=encoder)
    os.utime(corpus)
    with pytest.raises(RefusedError, match=r"the corpus\.parquet has another modification time; if its") as refused:
        embed([corpus], output, encoder=encoder)
    command = re.search(r"set the time back: (touch .*); else replace it with --overwrite", str(refused.value))
    assert command is not None
    with pytest.raises(RefusedError, match=r'column was "text", now .*; inputs|inputs.*column was "text"'):
        embed([corpus], output, encoder=encoder, template="{text}!")
    subprocess.run(shlex.split(command[1]), check=True)
    assert embed([corpus], output, encoder=encoder).already_finished
