import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, embed
from fastvec.errors import DiskFullError, InterruptedRunError, OutputError, UsageError
from fastvec.output.vector_column import ranges_from_json
from fastvec.output.verify import verify
from fastvec.report import Progress, Report
from fastvec.system.durable_files import locked
from tests import ARTICLES
from tests.helpers.corpora import texts, write_parquet
from tests.helpers.outputs import read_output


def vectors_of(table: pa.Table) -> npt.NDArray[Any]:
    column = table["embedding"].combine_chunks()
    values: npt.NDArray[Any] = column.values.to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return values


@pytest.mark.usefixtures("small_chunks")
def test_every_row_in_order_with_the_vectors_of_encode(encoder: Encoder, output: Path) -> None:
    report = embed([ARTICLES], output, encoder=encoder, column="text", keep=["title"])

    articles, table = pq.read_table(ARTICLES), read_output(output)
    assert table.column_names == ["title", "row", "embedding"]
    assert table["title"].to_pylist() == articles["title"].to_pylist()
    assert table["row"].to_pylist() == list(range(300))
    assert table["embedding"].type == pa.list_(pa.float32(), 64)
    expected = encoder.encode(articles["text"].to_pylist())
    assert np.abs(vectors_of(table) - expected).max() < 1e-6
    assert (report.rows, report.nulls, report.errors, report.return_code, report.resumed_rows) == (300, 0, 0, 0, 0)
    assert verify(output).return_code == 0
    assert [path.name for path in output.parent.iterdir()] == ["vecs.arrow"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
def test_a_chunk_that_is_begun_before_another_is_finished_changes_no_byte(
    encoder: Encoder, tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed([ARTICLES], output, encoder=encoder, column="text")
    calls: list[str] = []

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            calls.append(name)
            return call(*arguments)

        return called

    for name in ("begin", "finish"):
        monkeypatch.setattr(Encoder, name, noted(name, getattr(Encoder, name)))
    monkeypatch.setattr(Encoder, "chunks_ahead", 1)
    ahead = tmp_path / "ahead" / "vecs.arrow"
    ahead.parent.mkdir()
    embed([ARTICLES], ahead, encoder=encoder, column="text")
    assert ahead.read_bytes() == output.read_bytes()
    chunks = len(calls) // 2
    assert chunks > 3
    assert calls == ["begin", *["begin", "finish"] * (chunks - 1), "finish"]


def test_the_metadata_says_what_the_vectors_are(encoder: Encoder, output: Path) -> None:
    embed([ARTICLES], output, encoder=encoder, column="text", limit=7, instruction="Find it:")
    metadata = {key.decode(): value.decode() for key, value in read_output(output).schema.metadata.items()}
    expected = {
        "fastvec.bidirectional": "true",
        "fastvec.pooling": "mean",
        "fastvec.pooled_tokens": "text",
        "fastvec.instruction": "Find it: ",
        "fastvec.normalize": "true",
        "fastvec.dims": "64",
        "fastvec.dtype": "float32",
        "fastvec.vector_dtype": "float32",
        "fastvec.weights": encoder.settings.checkpoint.weights_hash,
    }
    assert expected.items() <= metadata.items()
    assert [file["rows"] for file in json.loads(metadata["fastvec.inputs"])] == [7]
    assert json.loads(metadata["fastvec.fingerprint"])["rows"] == 7


def test_odd_rows_are_counted_and_none_shifts_another(encoder: Encoder, tmp_path: Path, output: Path) -> None:
    rows = pa.array([b"a sea", None, b"", b" \n", b"bad \xff byte", b"stars " * 600], type=pa.binary())
    corpus = write_parquet(tmp_path / "corpus.parquet", pa.table({"text": rows}))
    report = embed([corpus], output, encoder=encoder)

    table = read_output(output)
    counts = (report.rows, report.nulls, report.empty, report.truncated, report.repaired, report.errors)
    assert counts == (6, 1, 2, 1, 1, 0)
    assert table["embedding"].is_valid().to_pylist() == [True, False, True, True, True, True]
    expected = encoder.encode(["a sea", "", " \n", "bad \ufffd byte", "stars " * 600])
    assert np.abs(vectors_of(table)[[0, 2, 3, 4, 5]] - expected).max() < 1e-6
    assert verify(output).return_code == 0


def test_an_empty_corpus_is_a_whole_file_of_no_rows(encoder: Encoder, tmp_path: Path, output: Path) -> None:
    corpus = write_parquet(tmp_path / "corpus.parquet", texts([]))
    report = embed([corpus], output, encoder=encoder)
    assert (report.rows, read_output(output).num_rows, verify(output).return_code) == (0, 0, 0)


def test_only_nulls(encoder: Encoder, tmp_path: Path, output: Path) -> None:
    corpus = write_parquet(tmp_path / "corpus.parquet", texts([None, None]))
    report = embed([corpus], output, encoder=encoder, vector_dtype="int8")
    assert (report.nulls, read_output(output)["embedding"].to_pylist()) == (2, [None, None])


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("vector_dtype", ["float32", "int8"])
def test_a_run_resumed_after_any_chunk_is_the_same_to_the_byte(
    encoder: Encoder, tmp_path: Path, vector_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fastvec.embedding.encoded_chunks.FIRST_TEXTS", 1
    )  # otherwise the first six chunks of int8 would be committed together
    whole, broken = tmp_path / "whole.arrow", tmp_path / "broken.arrow"
    options: dict[str, Any] = {"encoder": encoder, "column": "text", "vector_dtype": vector_dtype}
    embed([ARTICLES], whole, **options)
    stops, resumed = 0, []
    while not broken.exists():
        stops += 1
        try:
            report = embed([ARTICLES], broken, **options, progress=_kill_at_the_second_chunk())
            resumed.append(report.resumed_rows)
        except Killed:
            continue
    assert stops > 3
    assert 0 < resumed[0] < 300
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
def test_a_resumed_run_keeps_the_token_budget_that_was_found_to_fit(encoder: Encoder, output: Path) -> None:
    small = Encoder(encoder.settings, batch_tokens=300)
    with pytest.raises(Killed):
        embed([ARTICLES], output, encoder=small, column="text", progress=_kill_at_the_second_chunk())
    resumed, used = Encoder(encoder.settings), set()
    embed([ARTICLES], output, encoder=resumed, column="text", progress=lambda _: used.add(resumed.batch_tokens))
    assert used == {300}


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
def test_a_resumed_run_keeps_what_was_measured(encoder: Encoder, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.arrow", tmp_path / "broken.arrow"
    other = Encoder(encoder.settings)
    measured = {"products": "torch", "routes": [[16, "padded"], [2048, "runs"]]}
    other.choose(measured)
    embed([ARTICLES], whole, encoder=other, column="text")
    with pytest.raises(Killed):
        embed([ARTICLES], broken, encoder=other, column="text", progress=_kill_at_the_second_chunk())
    resumed, used = Encoder(encoder.settings), []
    before = resumed.choices
    report = embed([ARTICLES], broken, encoder=resumed, column="text", progress=lambda _: used.append(resumed.choices))
    assert report.resumed_rows
    assert used
    assert all(choices == measured for choices in used)
    assert report.choices == measured
    assert resumed.choices == before != measured
    assert broken.read_bytes() == whole.read_bytes()


def test_a_budget_asked_for_is_that_of_one_run(encoder: Encoder, output: Path) -> None:
    before, used = encoder.batch_tokens, set()
    options: dict[str, Any] = {"column": "text", "limit": 3, "batch_tokens": 123}
    embed([ARTICLES], output, encoder=encoder, **options, progress=lambda _: used.add(encoder.batch_tokens))
    assert (used, encoder.batch_tokens) == ({123}, before)


def _kill_at_the_second_chunk() -> Callable[[Progress], None]:
    seen = []

    def kill(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 2 and progress.rows < 300:
            raise Killed

    return kill


@pytest.mark.usefixtures("small_chunks")
def test_a_signal_ends_the_run_with_its_code_and_the_same_call_resumes(
    encoder: Encoder, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Progress] = []
    with pytest.raises(
        InterruptedRunError, match=r"stopped by SIGTERM at row .* of 300: run the same command"
    ) as stopped:
        embed(
            [ARTICLES],
            output,
            encoder=encoder,
            column="text",
            progress=seen.append,
            stop_signal=lambda: 15 if seen else None,
        )
    assert stopped.value.exit_code == 143
    assert not output.exists()
    with caplog.at_level("INFO", logger="fastvec"):
        report = embed([ARTICLES], output, encoder=encoder, column="text")
    assert report.resumed_rows >= seen[-1].rows > 0
    assert f"resuming {output} at row {report.resumed_rows} of 300" in caplog.messages
    assert verify(output).return_code == 0


def test_int8_keeps_its_ranges_and_binary_its_signs(encoder: Encoder, tmp_path: Path) -> None:
    articles = pq.read_table(ARTICLES)["text"].to_pylist()[:20]
    expected = encoder.encode(articles)
    small, signs = tmp_path / "int8.arrow", tmp_path / "binary.arrow"
    for path, dtype in ((small, "int8"), (signs, "binary")):
        embed([ARTICLES], path, encoder=encoder, column="text", limit=20, vector_dtype=dtype)
        assert verify(path).return_code == 0

    table = read_output(small)
    ranges = ranges_from_json(table.schema.metadata[b"fastvec.ranges"])
    assert np.abs(vectors_of(table) * ranges / 127 - expected).max() <= (ranges / 254 + 1e-6).max()
    assert (np.unpackbits(vectors_of(read_output(signs)), axis=1) == (expected > 0)).all()


def test_float16_halves_the_column(encoder: Encoder, output: Path) -> None:
    embed([ARTICLES], output, encoder=encoder, column="text", limit=5, vector_dtype="float16")
    table = read_output(output)
    assert table["embedding"].type == pa.list_(pa.float16(), 64)
    articles = pq.read_table(ARTICLES)["text"].to_pylist()[:5]
    assert np.abs(vectors_of(table).astype(np.float32) - encoder.encode(articles)).max() < 1e-3


def test_a_disk_that_cannot_hold_it_is_said_at_once(
    encoder: Encoder, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(DiskFullError, match="needs at least 79,200 bytes and 1,000 are free"):
        embed([ARTICLES], output, encoder=encoder, column="text")
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("has_locks", [True, False])
def test_tasks_of_a_job_array_may_copy_a_table_at_the_same_time(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool
) -> None:
    """What a killed task left is deleted if locks tell that it is not in use, and its machine is this one."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def embed_part(part: str, progress: Callable[[Progress], None]) -> Report:
        table = pa.concat_tables([pa.table({"text": [text]}) for text in ("a sea", "stars", "a wood", "rain")])
        return embed(table, f"{tmp_path}/vecs/", encoder=encoder, shard=part, shard_rows=1, progress=progress)

    if not has_locks:
        monkeypatch.setattr("fcntl.flock", refuse)
    left = tmp_path / f"vecs.input0.{socket.gethostname()}.{uuid4().hex}"
    elsewhere = tmp_path / f"vecs.input0.elsewhere.{uuid4().hex}"
    left.touch()
    elsewhere.touch()
    others: list[Report] = []
    own = embed_part("0/2", lambda _: others.append(embed_part("1/2", lambda _: None)))
    assert {one.rows for one in (own, *others)} == {2}
    assert own.missing_shards == 0
    assert set(tmp_path.iterdir()) == {tmp_path / "vecs", elsewhere, *([] if has_locks else [left])}


def test_a_task_whose_new_copy_is_looked_at_takes_another_name(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [uuid4() for _ in range(2)]
    looked_at = tmp_path / f"vecs.input0.{socket.gethostname()}.{names[0].hex}"
    monkeypatch.setattr("fastvec.corpus.copies.uuid4", iter(names).__next__)
    with locked(looked_at):
        assert embed(pa.table({"text": ["a sea"]}), f"{tmp_path}/vecs/", encoder=encoder).rows == 1
    assert set(tmp_path.iterdir()) == {tmp_path / "vecs", looked_at}


@pytest.mark.parametrize(
    ("output_name", "message"),
    [
        (
            "vecs.csv",
            r"ends in neither \.arrow nor \.parquet: name a file, such as vecs\.arrow, or a folder of shards, vecs/$",
        ),
        ("vecs.lance", r"vecs\.lance cannot be embedded to: embed to .*vecs\.arrow, then run fastvec convert "),
        ("folder.arrow/", r"is a folder with the name of a file: give -o another name, as folder/$"),
        ("nowhere/vecs.arrow", "is not a folder: make it first"),
        ("s3://bucket/vecs.csv", r"s3://bucket/vecs.csv ends in neither \.arrow nor \.parquet"),
    ],
)
def test_an_output_that_cannot_be_is_refused(encoder: Encoder, tmp_path: Path, output_name: str, message: str) -> None:
    output = output_name if "://" in output_name else f"{tmp_path}/{output_name}"
    with pytest.raises(OutputError, match=message):
        embed([ARTICLES], output, encoder=encoder, column="text")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vector_dtype": "int4"}, "vector dtype 'int4' is not known: choose float32, float16, int8, binary"),
        ({"on_error": "skip"}, "on-error 'skip' is not known: choose null or fail"),
        ({"limit": -1}, "limit -1 is out of range: the minimum is 0"),
    ],
)
def test_an_option_that_cannot_be_met_is_refused(
    encoder: Encoder, output: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        embed([ARTICLES], output, encoder=encoder, column="text", **options)
