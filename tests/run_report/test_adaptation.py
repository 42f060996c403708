"""The page about an adaptation: its curves and numbers, of the run itself and of one that was finished before."""

import json
from pathlib import Path
from typing import Any

import pytest

import fastvec
from fastvec.errors import OutputError, RefusedError, UsageError
from fastvec.report import AdaptReport
from fastvec.run_report.adaptation import AdaptationPage
from tests import ARTICLES
from tests.run_report.parsed import Parsed

HOSTILE = "<script>alert(1)<script>"


@pytest.mark.slow
def test_the_page_has_the_curves_and_the_measures(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(HOSTILE).symlink_to(tiny_llama)
    page = AdaptationPage("report.html", "adapted", [ARTICLES])
    job: dict[str, Any] = {"objective": "mntp", "model": HOSTILE, "data": [ARTICLES], "column": "text"}
    job |= {"steps": 2, "batch_size": 2, "max_length": 16, "dtype": "float32", "device": "cpu", "output": "adapted"}
    report = fastvec.adapt(**job)
    page.write(report)
    parsed = Parsed(Path("report.html"))
    assert report.held_out_after is not None
    assert {"Loss", "Evaluations", "Optimizer", f"{report.held_out_after:.3f}", str(ARTICLES), HOSTILE} <= set(
        parsed.texts
    )
    assert parsed.tags.count("svg") == 3
    assert not {"script", "img", "link"} & set(parsed.tags)
    assert "://" not in Path("report.html").read_text()

    again = fastvec.adapt(**job)
    page.write(again)
    assert again.already_finished
    parsed = Parsed(Path("report.html"))
    assert "The adaptation was already finished: the figures and numbers are those in its folder." in parsed.texts
    assert parsed.tags.count("svg") == 3
    assert "Time" not in parsed.texts


def test_a_page_is_refused_before_any_work(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("mine")
    with pytest.raises(RefusedError, match="is not a report"):
        AdaptationPage(page, tmp_path / "adapted", [])
    with pytest.raises(UsageError, match="is the output or in its folder"):
        AdaptationPage(tmp_path / "adapted.html", tmp_path / "adapted.html", [])
    assert page.read_text() == "mine"


def test_a_folder_without_its_record_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "adapted"
    folder.mkdir()
    page = AdaptationPage(tmp_path / "report.html", folder, [])
    report = AdaptReport(objective="mntp", output=str(folder), steps=2)
    for content in (None, "[]", json.dumps({"base": {}})):
        if content is not None:
            (folder / "fastvec.json").write_text(content)
        with pytest.raises(OutputError, match=r"has no fastvec\.json and metrics\.jsonl that a report can be made of"):
            page.write(report)
    assert not (tmp_path / "report.html").exists()
