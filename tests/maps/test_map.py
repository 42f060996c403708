import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from fastvec.cli.entry import main
from fastvec.errors import DiskFullError
from fastvec.maps import job
from fastvec.maps.job import draw_map
from tests import ROOT
from tests.cli.conftest import Done, Run
from tests.helpers.outputs import run_job
from tests.helpers.processes import environment
from tests.maps.outputs import random_vectors, write_vectors


@pytest.fixture
def vecs(tmp_path: Path) -> Path:
    kept = {"title": pa.array([f"Whale {i}" for i in range(12)]), "kind": pa.array(["a", "b"] * 6)}
    return write_vectors(tmp_path / "vecs.arrow", random_vectors(12), missing=(3,), **kept)


@pytest.fixture
def fastvec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["fastvec", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main()
        return Done(int(done.value.code or 0), *capsys.readouterr())

    return run


def test_a_page_and_a_picture_are_written(fastvec: Run, vecs: Path, tmp_path: Path) -> None:
    done = fastvec("map", vecs, "-o", "map.html", "--png", "map.png", "--color", "kind", "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    page, picture = tmp_path / "map.html", tmp_path / "map.png"
    assert report["outputs"] == ["map.html", "map.png"]
    counts = {name: report[name] for name in ("rows", "drawn", "without_vector", "projection")}
    assert counts == {"rows": 12, "drawn": 11, "without_vector": 1, "projection": "PCA"}
    assert report["size_bytes"] == page.stat().st_size + picture.stat().st_size
    assert sum(cluster["size"] for cluster in report["clusters"]) == 11
    assert report["note"].startswith("kept columns are shown instead of texts: ")
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert "a.parquet and 1 other file" in page.read_text()
    assert "11 of 12 texts · 1 without a vector · tiny, 8 dimensions · projected by PCA" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    first = page.read_bytes(), picture.read_bytes()
    again = fastvec("map", vecs, "-o", "map.html", "--png", "map.png", "--color", "kind", "--overwrite", "--quiet")
    assert again == (0, "", "")
    assert (page.read_bytes(), picture.read_bytes()) == first


def test_a_picture_alone(fastvec: Run, vecs: Path, tmp_path: Path) -> None:
    done = fastvec("map", vecs, "-o", "map.png", "--limit", "5")
    assert (done.exit_code, done.stdout) == (0, "")
    assert re.search(r"^5 of 12 rows, 1 of which have no vector, 3 clusters, to map.png, 0.\d MB", done.stderr, re.M)
    assert {path.name for path in tmp_path.iterdir()} == {"vecs.arrow", "map.png"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("vecs.arrow", "-o", "map.pdf"), 2, "map.pdf ends in neither .html nor .png, the formats of a map"),
        (("vecs.arrow", "-o", "a.png", "--png", "b.png"), 2, "-o a.png --png b.png: with --png, -o names a .html file"),
        (("vecs.arrow", "-o", "a.html", "--png", "b.jpg"), 2, "-o a.html --png b.jpg: with --png, -o names a .html"),
        (("vecs.arrow", "-o", "no/map.html"), 1, "no is not a folder: create it, or choose another output"),
        (("vecs.arrow", "-o", "old.html"), 4, "old.html exists: replace it with --overwrite, or choose another name"),
        (("vecs.arrow", "-o", "m.html", "--png", "old.png"), 4, "old.png exists: replace it with --overwrite"),
        (("none.arrow", "-o", "map.html"), 1, "none.arrow"),
        (("old.html", "-o", "map.html"), 1, "old.html is neither an Arrow IPC file nor a Parquet file"),
        (("vecs.arrow", "-o", "map.html", "--label", "id"), 2, "--label id: vecs.arrow has no such column, the kept"),
        (("vecs.arrow", "-o", "map.html", "--color", "id"), 2, "--color id: vecs.arrow has no such column, the kept"),
        (("vecs.arrow", "-o", "map.html", "--vector-column", "x"), 2, "vecs.arrow has no column of vectors named 'x'"),
        (("vecs.arrow", "-o", "map.html", "--limit", "0"), 2, "Invalid value for '--limit'"),
        (("empty.arrow", "-o", "map.html"), 1, "empty.arrow has no vectors to draw: none of its 2 rows has one"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    fastvec: Run, vecs: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    write_vectors(tmp_path / "empty.arrow", random_vectors(2), missing=(0, 1))
    for name in ("old.html", "old.png"):
        (tmp_path / name).write_text("old")
    before = {path.name for path in tmp_path.iterdir()}
    done = fastvec("map", *arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith(f"fastvec: {message}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (tmp_path / "old.html").read_text() == "old"


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_vectors_of_any_dtype_are_drawn(tmp_path: Path, dtype: str) -> None:
    run_job(tmp_path / "vecs.arrow", dtype=dtype)
    report = draw_map([tmp_path / "vecs.arrow"], tmp_path / "map.html", limit=10)
    assert (report.rows, report.drawn, report.without_vector) == (35, 10, 9)


def test_a_full_disk_is_one_error(vecs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(job, "write_at", full)
    with pytest.raises(DiskFullError, match=r"no space left for .*map\.html"):
        draw_map([vecs], tmp_path / "map.html")
    assert {path.name for path in tmp_path.iterdir()} == {"vecs.arrow"}


def test_a_picture_that_cannot_be_made_leaves_no_page(
    vecs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> bytes:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(job, "picture_of", fail)
    with pytest.raises(RuntimeError, match="no fonts"):
        draw_map([vecs], tmp_path / "map.html", png=tmp_path / "map.png")
    assert {path.name for path in tmp_path.iterdir()} == {"vecs.arrow"}


def test_a_signal_leaves_no_file(fastvec: Run, vecs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "write_at", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert fastvec("map", vecs, "-o", "map.html", "--quiet") == (143, "", "fastvec: stopped\n")
    assert {path.name for path in tmp_path.iterdir()} == {"vecs.arrow"}


def test_a_missing_package_is_named(fastvec: Run, vecs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "find_spec", lambda name: None if name == "umap" else name)
    done = fastvec("map", vecs, "-o", "map.html")
    expected = "fastvec: maps need the package umap-learn: pip install 'fastvec[map]'\n"
    assert (done.exit_code, done.stderr) == (1, expected)


def test_an_interrupted_run_leaves_the_old_page(vecs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "map.html"
    page.write_text("old")

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "write_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_map([vecs], page, overwrite=True)
    assert page.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"vecs.arrow", "map.html"}


def test_every_option_is_documented() -> None:
    text = (ROOT / "docs/map.md").read_text()
    command = [sys.executable, "-m", "fastvec", "map", "--help"]
    shown = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"--[a-z-]+", shown)) - {"--help"}
    assert len(options) >= 8
    assert {option for option in options if not re.search(rf"{option}(?![a-z-])", text)} == set()


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_vectors(tmp_path / "vecs.arrow", random_vectors(12), language=pa.array(["en", "de"] * 6))
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/map.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(example, {})
    assert {path.name for path in tmp_path.iterdir()} == {"vecs.arrow", "map.html", "map.png"}


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    vecs = write_vectors(tmp_path / "vecs.arrow", random_vectors(60))
    pages = []
    for name in ("a.html", "b.html"):
        command = [sys.executable, "-m", "fastvec", "map", str(vecs), "-o", str(tmp_path / name), "--quiet"]
        subprocess.run(command, env=environment(), check=True)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
