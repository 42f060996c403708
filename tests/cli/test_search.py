"""The command `fastvec search`."""

import json
import shutil
from pathlib import Path

import pytest

from fastvec import Encoder, embed
from tests import ARTICLES
from tests.cli.conftest import Run


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("embedded") / "vecs.arrow"
    embed([ARTICLES], output, encoder=Encoder.from_pretrained(device="cpu"), column="text", keep=["title"])
    return output


@pytest.fixture
def vecs(fastvec: Run, embedded: Path) -> Path:
    return Path(shutil.copy(embedded, "vecs.arrow"))


def test_a_query_prints_rows_to_stdout_and_nothing_to_stderr(fastvec: Run, vecs: Path) -> None:
    done = fastvec("search", vecs, "species of moth", "-k", "3")
    assert (done.exit_code, done.stderr) == (0, "")
    assert [line.split("  ")[-1].strip() for line in done.stdout.splitlines()] == [
        "Erechthias hemiclistra",
        "Lysiphragma epixyla",
        "Eschatotypa melichrysa",
    ]


def test_a_query_may_be_longer_than_the_name_of_a_file(fastvec: Run, vecs: Path) -> None:
    done = fastvec("search", vecs, "a species of moth " * 300, "-k", "1")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Erechthias" in done.stdout


def test_json_is_one_document(fastvec: Run, vecs: Path) -> None:
    done = fastvec("search", vecs, "species of moth", "-k", "1", "--json", "--filter", "row > 200", "--text")
    (query,) = json.loads(done.stdout)["queries"]
    assert query["query"] == "species of moth"
    (hit,) = query["hits"]
    assert hit["row"] > 200
    assert hit["text"].startswith(hit["title"])


def test_queries_of_a_file_go_to_a_file(fastvec: Run, vecs: Path) -> None:
    Path("q.txt").write_text("moths\nskiing\n")
    done = fastvec("search", vecs, "--queries", "q.txt", "-k", "2", "-o", "hits.jsonl")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith("2 queries against 300 vectors in ")
    assert [json.loads(line)["query"] for line in Path("hits.jsonl").read_text().splitlines()] == [0, 0, 1, 1]
    again = fastvec("search", vecs, "--queries", "q.txt", "-o", "hits.jsonl")
    assert again.exit_code == 4
    assert "--overwrite" in again.stderr


def test_variables_of_the_environment_are_named_after_options(
    fastvec: Run, vecs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTVEC_SEARCH_TOP_K", "2")
    assert len(fastvec("search", vecs, "moths").stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vecs.arrow"], "a query is missing"),
        (["vecs.arrow", "q.txt"], "a query is missing"),
        (["vecs.arrow", "--queries", "q.txt", "-o", "q.txt", "--overwrite"], "q.txt is a file that is read"),
        (["vecs.arrow", "x", "-o", "vecs.arrow", "--overwrite"], "vecs.arrow is a file that is read"),
        (["vecs.arrow", "--queries", "q.jsonl", "-o", "q.jsonl", "--overwrite"], "q.jsonl is a file that is read"),
        (["vecs.arrow", "x", "--queries", "q.txt"], "a query 'x' and --queries were both given"),
        (["s3://bucket/vecs/", "--queries", "q.txt"], "s3"),
        (["vecs.arrow", "--queries", "blank.txt"], "blank.txt: row 1, counted from 0, is empty"),
        (["vecs.arrow", "x", "-o", str(ARTICLES), "--overwrite"], "was embedded: choose another name"),
        (["begun.arrow", "x"], "begun.arrow is unfinished: run the same command again"),
        (["vecs.arrow", "x", "--filter", "title = 'x'"], "compare with =="),
        (["vecs.arrow", "x", "--filter", "title < 5"], "title is string"),
        (["vecs.arrow", "x", "--query-column", "a"], "--query-column needs --queries"),
        (["none.arrow", "x"], "none.arrow cannot be read: No such file"),
        (["vecs.arrow", "--queries", "none.jsonl"], "none.jsonl"),
        (["vecs.arrow", "x", "-k", "many"], "'many' is not a valid integer"),
        (["vecs.arrow", "vecs.arrow", "x"], "given twice"),
        (["vecs.arrow", "x", "--model", "none/none/none"], "no such folder"),
    ],
)
def test_a_mistake_is_one_line(fastvec: Run, vecs: Path, arguments: list[str], message: str) -> None:
    Path("q.txt").write_text("moths\n")
    Path("blank.txt").write_text("moths\n\nskiing\n")
    Path("begun.arrow.journal").touch()
    Path("q.jsonl").write_text('{"text": "moths"}\n')
    before = vecs.read_bytes()
    done = fastvec("search", *arguments)
    assert vecs.read_bytes() == before
    assert done.exit_code in (1, 2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
