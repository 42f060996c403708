"""The page about an embedding job: it says what the job's report says, is safe to open, and changes no output."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fastvec import Encoder, embed
from fastvec.embedding.measurements import Measurements
from fastvec.embedding.options import EmbedOptions
from fastvec.embedding.plan import plan_embed
from fastvec.errors import DiskFullError, InterruptedRunError, OutputError, RefusedError, UsageError
from fastvec.report import Progress, Report
from fastvec.run_report.embedding import Embedding, embedding_html
from fastvec.run_report.machine import machine
from tests import ARTICLES
from tests.helpers.corpora import write_parquet
from tests.helpers.tiny import SENTENCES
from tests.run_report.parsed import Parsed


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "vecs.arrow"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


@pytest.mark.usefixtures("small_chunks")
def test_the_page_has_the_totals_and_needs_nothing(encoder: Encoder, output: Path, page: Path) -> None:
    report = embed([ARTICLES], output, encoder=encoder, column="text", keep=["title"], limit=120, report=page)
    parsed = Parsed(page)
    for number in (report.rows, report.tokens, report.truncated, report.duplicates):
        assert f"{number:,}" in parsed.texts
    for value in (str(output), f"{ARTICLES} (120 rows)", "column text", "title", f"{report.rows_per_second:,.0f}"):
        assert value in parsed.texts
    titles = ["Speed", "Stages", "Lengths", "What was run", "Counts", "Computation", "Machine"]
    assert [text for text in parsed.texts if text in titles] == titles
    assert parsed.tags.count("svg") == 3

    names = [value for name, value in parsed.attributes if name == "id"]
    assert len(names) == len(set(names))
    links = [value for name, value in parsed.attributes if re.search("href|src|action|data$", name)]
    assert all(value.startswith("#") and value[1:] in names for value in links)
    drawn = re.findall(r"url\(([^)]*)\)", page.read_text())
    assert drawn
    assert all(value.startswith("#") and value[1:] in names for value in drawn)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(parsed.tags)
    assert "://" not in page.read_text()
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in parsed.attributes
    assert list(page.parent.glob("report.html*")) == [page]


def test_hostile_names_are_text(tiny_llama: Path, tmp_path: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus, model = Path("<script>alert(1)<script>.parquet"), Path('<b onclick="x()">&amp;\u202e{{ 7 * 7 }}')
    column, kept = "<img src=x onerror=alert(1)>", "'\"><svg onload=alert(1)>"
    write_parquet(corpus, pa.table({column: SENTENCES, kept: SENTENCES}))
    model.symlink_to(tiny_llama)
    encoder = Encoder.from_pretrained(model, dtype="float32", device="cpu")
    output = "</title><script>.arrow".replace("/", "\u2044")
    embed([corpus], output, encoder=encoder, column=column, keep=[kept], instruction="<i>a</i>", report=page)
    parsed = Parsed(page)
    assert not {"script", "img", "b", "i"} & set(parsed.tags)
    assert not {name for name, _ in parsed.attributes if name.startswith("on")}
    assert parsed.tags.count("title") == 1
    for shown in (f"{corpus} ({len(SENTENCES)} rows)", f"column {column}", kept, output, "<i>a</i>"):
        assert shown in parsed.texts
    assert r'<b onclick="x()">&amp;\u202e{{ 7 * 7 }}' in parsed.texts


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", ["vecs.arrow", "vecs.parquet", "vecs/"])
def test_a_report_changes_no_byte_and_no_job(
    encoder: Encoder, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastvec.jobs.record.new_id", lambda: "0123456789abcdef")
    options: dict[str, Any] = {"encoder": encoder, "column": "text", "limit": 90}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = embed([ARTICLES], f"{tmp_path}/a/{name}", **options)
    page = tmp_path / "report.html"
    embed([ARTICLES], f"{tmp_path}/b/{name}", **options, report=page)

    def written(folder: Path) -> dict[Path, bytes]:
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert written(tmp_path / "a") == written(tmp_path / "b")
    assert "Lengths" in Parsed(page).texts
    again = embed([ARTICLES], f"{tmp_path}/a/{name}", **options, report=page)
    assert again.already_finished
    parsed = Parsed(page)
    assert "The output was already finished, so nothing was embedded" in parsed.text
    assert not {"Lengths", "Speed", "Stages", "Time"} & set(parsed.texts)
    for number in (plain.rows, plain.tokens):
        assert f"{number:,}" in parsed.texts


@pytest.mark.usefixtures("small_chunks")
def test_an_interrupted_run_writes_none_and_a_resumed_one_says_what_it_covers(
    encoder: Encoder, output: Path, page: Path
) -> None:
    seen: list[Progress] = []
    options: dict[str, Any] = {"encoder": encoder, "column": "text", "limit": 150, "report": page}
    with pytest.raises(InterruptedRunError):
        embed([ARTICLES], output, **options, progress=seen.append, stop_signal=lambda: 15 if seen else None)
    assert not page.exists()
    report = embed([ARTICLES], output, **options)
    assert 0 < report.resumed_rows < 150
    text = Parsed(page).text
    assert f"This run resumed: {report.resumed_rows} rows are from an earlier one." in text
    assert f"norms cover the {150 - report.resumed_rows} rows of this one" in text


def test_norms_are_drawn_if_they_differ(tiny_llama: Path, output: Path, page: Path) -> None:
    encoder = Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu", normalize=False)
    embed([ARTICLES], output, encoder=encoder, column="text", limit=30, report=page)
    assert "Norms of vectors" in Parsed(page).texts


def test_row_errors_are_shown(encoder: Encoder, tmp_path: Path, output: Path, page: Path) -> None:
    corpus = tmp_path / "rows.jsonl"
    corpus.write_text("".join('{"text": "a"}\n{broken\n' for _ in range(7)))
    report = embed([corpus], output, encoder=encoder, report=page)
    text = Parsed(page).text
    assert report.errors == 7
    assert "7 texts have no vector. The first of them, from" in text
    assert [row for row in range(14) if f"row {row}\n" in text] == [1, 3, 5, 7, 9]
    assert text.count("malformed_row") == 5


def test_what_other_processes_do_not_tell_is_left_out(encoder: Encoder, tmp_path: Path, page: Path) -> None:
    plan = plan_embed([ARTICLES], f"{tmp_path}/vecs/", settings=encoder.settings, options=EmbedOptions(column="text"))
    measurements = Measurements()
    for rows in (100, 60, 300):  # in between, a process died
        measurements.add_progress(
            Progress(
                rows=rows,
                total_rows=300,
                new_rows=rows,
                tokens=rows,
                seconds=rows + 1.0 * len(measurements.points) * 100,
                waits={},
            )
        )
    report = Report(output="vecs/", model="m", device="cpu", rows=300, shards=5, waits={"encode": 1.5, "read": 22.0})
    job = Embedding(plan=plan, report=report, measurements=measurements, how={"devices": "cpu:2", "shard": None})
    page.write_text(embedding_html(job))
    parsed = Parsed(page)
    assert "Other processes embedded the shards." in parsed.text
    assert {"Speed", "Waits", "22.0 s", "devices", "cpu:2"} <= set(parsed.texts)
    assert not {"Stages", "Lengths", "shard"} & set(parsed.texts)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("report.txt", UsageError, r"report\.txt does not end in \.html: name a file, such as report\.html"),
        ("nowhere/report.html", OutputError, "nowhere is not a folder: make it first"),
        ("folder.html", RefusedError, r"folder\.html exists and is not a report of fastvec"),
        ("own.html", RefusedError, r"own\.html exists and is not a report of fastvec"),
        ("vecs/report.html", UsageError, "is the output or in its folder: choose a place beside it"),
        ("s3://bucket/report.html", UsageError, "takes a local file"),
    ],
)
def test_a_report_that_cannot_be_is_refused_before_any_work(
    encoder: Encoder, tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "vecs").mkdir()
    (tmp_path / "own.html").write_text("<p>mine</p>")
    report = name if "://" in name else tmp_path / name
    with pytest.raises(error, match=message):
        embed([ARTICLES], f"{tmp_path}/vecs/", encoder=encoder, column="text", report=report)
    assert (tmp_path / "own.html").read_text() == "<p>mine</p>"
    assert list((tmp_path / "vecs").iterdir()) == []


def test_a_report_replaces_no_input(encoder: Encoder, tmp_path: Path, output: Path, page: Path) -> None:
    embed([ARTICLES], output, encoder=encoder, column="text", limit=1, report=page)
    before = page.read_bytes()
    text = tmp_path / "page.txt"
    text.symlink_to(page)
    with pytest.raises(RefusedError, match=r"report\.html is an input and would be replaced"):
        embed([text], tmp_path / "other.arrow", encoder=encoder, report=page)
    assert page.read_bytes() == before


def test_matplotlib_is_asked_for(encoder: Encoder, output: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=re.escape("pip install 'fastvec[report]'")):
        embed([ARTICLES], output, encoder=encoder, column="text", report=page)
    assert not output.exists()


def test_a_report_that_cannot_be_written_leaves_the_output(
    encoder: Encoder, output: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def full(path: Path) -> Iterator[int]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield 0

    options: dict[str, Any] = {"encoder": encoder, "column": "text", "limit": 3}
    with monkeypatch.context() as disk:
        disk.setattr("fastvec.run_report.target.replacing", full)
        with pytest.raises(DiskFullError, match=r"vecs\.arrow is finished, but its report .*: no space left for"):
            embed([ARTICLES], output, **options, report=page)
    assert not page.exists()
    assert embed([ARTICLES], output, **options, report=page).already_finished
    assert page.exists()

    page.write_text("not ours any more")

    def watch(_: Progress) -> None:
        raise AssertionError("it is finished")

    with pytest.raises(RefusedError, match="exists and is not a report"):
        embed([ARTICLES], output, **options, report=page, progress=watch)


def test_a_machine_without_the_gpu_that_a_cluster_used_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "GPU" not in dict(machine("cuda"))
