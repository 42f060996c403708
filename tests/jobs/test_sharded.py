"""An output in shards: the same rows and bytes as in one file, whoever embeds the shards, and in which order."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, embed, merge
from fastvec.corpus.reader import Corpus
from fastvec.errors import InterruptedRunError, OutputError, RefusedError, RowErrorsError, UsageError
from fastvec.jobs.worker import ShardWorker
from fastvec.report import Progress
from fastvec.settings import resolve_settings
from fastvec.shards.folder import LocalFolder
from fastvec.shards.manifest import read_manifest
from fastvec.shards.verify import verify_folder
from tests.helpers.corpora import texts, write_arrow, write_parquet
from tests.helpers.kills import Killed, kill_after
from tests.helpers.outputs import read_output

pytestmark = pytest.mark.usefixtures("small_chunks", "small_shards", "same_ids")

Contents = dict[str, bytes]


def contents(folder: Path) -> Contents:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse_to_load(self: ShardWorker) -> Encoder:
    raise AssertionError("the model was loaded")


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"vector_dtype": "float16", "keep": None}, marks=pytest.mark.slow),
        pytest.param({"vector_dtype": "int8"}, marks=pytest.mark.slow),
        pytest.param({"vector_dtype": "binary", "hash": True}, marks=pytest.mark.slow),
        pytest.param({"column": ["title", "text"]}, marks=pytest.mark.slow),
        pytest.param(
            {"column": "text", "long": "chunks", "chunk_tokens": 40, "chunk_text": True}, marks=pytest.mark.slow
        ),
        pytest.param({"column": "text", "long": "mean"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_merged_shards_are_the_single_file_byte_for_byte(
    articles: Path, encoder: Encoder, folder: Path, options: dict[str, Any]
) -> None:
    options = {"column": "text", **options}
    single = embed([articles], folder.with_suffix(".arrow"), encoder=encoder, **options)
    report = embed([articles], f"{folder}/", encoder=encoder, **options)

    parts = sorted(path.name for path in folder.glob("part-*"))
    assert parts == [f"part-0000{number}.arrow" for number in range(5)]
    assert (report.shards, report.missing_shards) == (5, 0)
    counted = ("rows", "input_rows", "nulls", "truncated", "tokens", "errors", "duplicates")
    assert [getattr(report, name) for name in counted] == [getattr(single, name) for name in counted]
    assert verify_folder(LocalFolder(folder)).return_code == 0
    for suffix in (".arrow", ".parquet"):
        target = folder.with_name(f"merged{suffix}")
        assert merge([folder], target).rows == report.rows
        if suffix == ".arrow":
            assert target.read_bytes() == folder.with_suffix(".arrow").read_bytes()
        else:
            assert pq.read_table(target).equals(read_output(folder.with_suffix(".arrow")))
    again = embed([articles], folder.with_name("merged.arrow"), encoder=encoder, **options)
    assert again.already_finished


def test_row_errors_have_their_places_in_the_whole_input(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    lines = ['{"text": "good"}' if row % 50 else "{broken" for row in range(300)]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(lines))
    single = embed([source], folder.with_suffix(".arrow"), encoder=encoder)
    folder.mkdir()  # an empty folder is not another job's
    report = embed([source], folder, encoder=encoder)

    assert (report.errors, report.return_code) == (single.errors, single.return_code) == (6, 3)
    expected = folder.with_suffix(".errors.jsonl").read_bytes()
    assert (folder / "_errors.jsonl").read_bytes() == expected
    merge([folder], folder.with_name("merged.arrow"))
    assert folder.with_name("merged.errors.jsonl").read_bytes() == expected
    assert folder.with_name("merged.arrow").read_bytes() == folder.with_suffix(".arrow").read_bytes()


def test_a_finished_folder_is_left_as_it_is_without_loading_a_model(
    articles: Path, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed([articles], f"{folder}/", encoder=encoder, column="text")
    before = contents(folder)
    monkeypatch.setattr(ShardWorker, "load", refuse_to_load)

    report = embed([articles], folder, encoder=encoder, column="text")

    assert report.already_finished
    assert str(report) == f"{folder} is already finished: 300 rows in 5 shards"
    assert contents(folder) == before
    assert not (folder / "_work").exists()


@pytest.mark.slow
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_last_process_of_a_job_array_publishes_the_manifest(
    articles: Path, encoder: Encoder, folder: Path, order: tuple[int, ...]
) -> None:
    embed([articles], f"{folder}/", encoder=encoder, column="text")
    expected = contents(folder)
    shutil.rmtree(folder)

    reports = [embed([articles], f"{folder}/", encoder=encoder, column="text", shard=f"{i}/3") for i in order[:2]]
    assert [report.missing_shards for report in reports] == [5 - reports[0].shards, 5 - sum(r.shards for r in reports)]
    assert not (folder / "_manifest.json").exists()
    assert verify_folder(LocalFolder(folder)).return_code == 1
    with pytest.raises(OutputError, match="is unfinished: run the same fastvec embed again to resume it"):
        merge([folder], folder.with_name("merged.arrow"))
    last = embed([articles], f"{folder}/", encoder=encoder, column="text", shard=f"{order[2]}/3")

    assert (last.missing_shards, sum(report.rows for report in (*reports, last))) == (0, 300)
    assert contents(folder) == expected


def test_more_processes_than_shards(articles: Path, encoder: Encoder, folder: Path) -> None:
    reports = [embed([articles], f"{folder}/", encoder=encoder, column="text", shard=f"{i}/7") for i in range(7)]
    assert [report.missing_shards for report in reports] == [4, 3, 2, 1, 0, 0, 0]
    assert [report.already_finished for report in reports] == [False] * 5 + [True] * 2


def test_the_corpus_is_divided_once_not_for_every_shard(
    articles: Path, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    divide, divided = Corpus.shards, []

    def counted(self: Corpus, shard_rows: int) -> list[range]:
        divided.append(shard_rows)
        return divide(self, shard_rows)

    monkeypatch.setattr(Corpus, "shards", counted)
    assert embed([articles], f"{folder}/", encoder=encoder, column="text").shards == 5
    assert divided == [60, 60]  # by the job and by its worker


def test_a_killed_run_does_only_what_is_missing(
    articles: Path, encoder: Encoder, folder: Path, encoded: list[int]
) -> None:
    embed([articles], f"{folder}/", encoder=encoder, column="text")
    expected, all_chunks = contents(folder), len(encoded)
    shutil.rmtree(folder)
    encoded.clear()

    with pytest.raises(Killed):
        embed([articles], f"{folder}/", encoder=encoder, column="text", progress=kill_after(5))
    done = len(encoded)
    report = embed([articles], f"{folder}/", encoder=encoder, column="text")

    assert 0 < report.resumed_rows < 300
    assert len(encoded) <= all_chunks + 2  # chunks that were encoded, but not durable
    assert done < all_chunks
    assert contents(folder) == expected


def test_a_stopped_run_says_how_many_shards_are_finished(articles: Path, encoder: Encoder, folder: Path) -> None:
    seen: list[Progress] = []

    def stop() -> int | None:
        return signal.SIGTERM if len(seen) > 6 else None

    with pytest.raises(InterruptedRunError) as stopped:
        embed([articles], f"{folder}/", encoder=encoder, column="text", progress=seen.append, stop_signal=stop)
    finished = len(list(folder.glob("_receipts/*/*.json")))
    assert stopped.value.exit_code == 143
    assert str(stopped.value) == (
        f"stopped by SIGTERM: {finished} of 5 shards are finished; run the same command again to resume"
    )
    assert 0 < finished < 5
    assert embed([articles], f"{folder}/", encoder=encoder, column="text").rows == 300


def test_progress_counts_rows_over_all_shards(articles: Path, encoder: Encoder, folder: Path) -> None:
    seen: list[Progress] = []
    embed([articles], f"{folder}/", encoder=encoder, column="text", progress=seen.append)
    rows = [state.rows for state in seen]
    assert rows == sorted(rows)
    assert (rows[-1], seen[-1].total_rows, seen[-1].new_rows) == (300, 300, 300)


def test_another_job_is_refused_and_replaced_on_request(articles: Path, encoder: Encoder, folder: Path) -> None:
    embed([articles], f"{folder}/", encoder=encoder, column="text", limit=100)
    before = contents(folder)
    with pytest.raises(RefusedError, match=r"vecs belongs to another job: .*rows was 100, now 300.*--overwrite"):
        embed([articles], f"{folder}/", encoder=encoder, column="text")
    assert contents(folder) == before
    with pytest.raises(UsageError, match="--overwrite would delete the shards of the other processes"):
        embed([articles], f"{folder}/", encoder=encoder, column="text", shard="0/2", overwrite=True)

    assert embed([articles], f"{folder}/", encoder=encoder, column="text", overwrite=True).rows == 300
    assert verify_folder(LocalFolder(folder)).return_code == 0


def test_an_unfinished_job_of_other_texts_is_refused(articles: Path, encoder: Encoder, folder: Path) -> None:
    with pytest.raises(Killed):
        embed([articles], f"{folder}/", encoder=encoder, column="text", progress=kill_after(3))
    with pytest.raises(RefusedError, match='belongs to another job: column was "text", now "title"'):
        embed([articles], f"{folder}/", encoder=encoder, column="title")
    assert len(list(folder.glob("_receipts/*/0.json"))) == 1
    with pytest.raises(RefusedError, match="was begun with 60 rows a shard, and --shard-rows is 70"):
        embed([articles], f"{folder}/", encoder=encoder, column="text", shard_rows=70)
    report = embed([articles], f"{folder}/", encoder=encoder, column="text", shard_rows=60, overwrite=True)
    assert (report.rows, report.resumed_rows) == (300, 60)  # unfinished work of the same job is kept


def test_a_folder_with_other_files_is_refused(articles: Path, encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RefusedError, match=r"has other files, such as notes.txt: .* needs a folder of its own, such"):
        embed([articles], tmp_path, encoder=encoder, column="text")
    with pytest.raises(UsageError, match="the output is inside the input folder"):
        embed([articles.parent], f"{articles.parent}/vecs/", encoder=encoder, column="text")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_max_errors_counts_over_all_shards(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join('{"text": "good"}' if row % 50 else "{broken" for row in range(300)))
    with pytest.raises(RowErrorsError, match="4 texts have no vector and --max-errors 3 stops there"):
        embed([source], f"{folder}/", encoder=encoder, max_errors=3)
    assert embed([source], f"{folder}/", encoder=encoder).errors == 6


@pytest.mark.slow
def test_int8_ranges_depend_on_the_batches_as_those_of_a_single_file_do(
    articles: Path, encoder: Encoder, folder: Path
) -> None:
    options: dict[str, Any] = {
        "encoder": encoder,
        "column": "text",
        "vector_dtype": "int8",
        "batch_tokens": 64,
        "limit": 120,
    }
    embed([articles], f"{folder}/", **options)
    embed([articles], folder.with_suffix(".arrow"), **options)
    merge([folder], folder.with_name("merged.arrow"))
    assert folder.with_name("merged.arrow").read_bytes() == folder.with_suffix(".arrow").read_bytes()


def test_the_empty_input(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "empty.parquet", texts([]))
    assert embed([source], f"{folder}/", encoder=encoder).rows == 0
    assert verify_folder(LocalFolder(folder)).return_code == 0
    merge([folder], folder.with_name("merged.arrow"))
    embed([source], folder.with_suffix(".arrow"), encoder=encoder)
    assert folder.with_name("merged.arrow").read_bytes() == folder.with_suffix(".arrow").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "2/2"}, "shard '2/2' is not known: give i/N for process i of N, from 0/N to N-1/N"),
        ({"shard": "one"}, "shard 'one' is not known"),
        ({"shard_rows": 0}, "shard-rows 0 is out of range: give a number from 1 on"),
        ({"shard_rows": "60"}, "shard-rows '60' is out of range"),
        ({"shard": (1, 2)}, r"shard \(1, 2\) is not known"),
        ({"devices": [0, 1]}, r"devices \[0, 1\] are not a string: give 'all', '0,1' or 'cpu:4'"),
    ],
)
def test_options_that_cannot_be(
    articles: Path, encoder: Encoder, folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        embed([articles], f"{folder}/", encoder=encoder, column="text", **options)
    with pytest.raises(UsageError, match=r"needs an output in shards: name a folder, such as -o vecs/"):
        embed([articles], folder.with_suffix(".arrow"), encoder=encoder, column="text", **options)


def test_the_manifest_describes_each_shard(articles: Path, encoder: Encoder, folder: Path) -> None:
    embed([articles], f"{folder}/", encoder=encoder, column="text")
    manifest = read_manifest(LocalFolder(folder))
    assert manifest is not None
    assert [shard.rows_of_inputs for shard in manifest.shards] == [range(b, b + 60) for b in range(0, 300, 60)]
    assert [shard.bytes for shard in manifest.shards] == [
        (folder / shard.file).stat().st_size for shard in manifest.shards
    ]
    record = json.loads((folder / "_job.json").read_text())
    assert record["fingerprint"] == manifest.fingerprint


def test_a_pattern_does_not_match_the_shards_that_it_makes(articles: Path, encoder: Encoder, tmp_path: Path) -> None:
    write_arrow(tmp_path / "articles.arrow", pq.read_table(articles))
    for _ in range(2):
        report = embed(f"{tmp_path}/**/*.arrow", f"{tmp_path}/vecs/", encoder=encoder, column="text")
        assert report.rows == 300
    assert report.already_finished


def test_a_loaded_encoder_does_not_take_the_dtype_of_earlier_work(
    articles: Path, tiny_llama: Path, encoder: Encoder, folder: Path
) -> None:
    settings = resolve_settings(tiny_llama, device="cpu")
    other = "bfloat16" if settings.dtype == "float32" else "float32"
    few: dict[str, Any] = {"column": "text", "limit": 120}  # in bfloat16, which some CPUs are slow in
    with pytest.raises(Killed):
        embed(
            articles,
            f"{folder}/",
            encoder=replace(settings, dtype=other, auto_dtype=False),
            **few,
            progress=kill_after(2),
        )
    with pytest.raises(RefusedError, match="dtype was"):
        embed(articles, f"{folder}/", encoder=Encoder(settings), **few)
    assert embed(articles, f"{folder}/", encoder=settings, **few).rows == 120
