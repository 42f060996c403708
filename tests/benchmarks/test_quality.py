import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.engines.quality_tasks import load_tasks
from benchmarks.quality import main
from fastvec.checkpoints.bundled import bundled_model
from fastvec.evaluation.retrieval import Retrieval

DOCUMENTS = {"184": "wings at high speed", "29": "heat of a body", "31": "flow in a pipe"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    documents = "".join(f"<doc>\n<docno>{n}</docno>\n<text>{text}\n</text></doc>\n" for n, text in DOCUMENTS.items())
    (tmp_path / "cran.all.1400.xml").write_text(documents)
    queries = ["speed of\nwings", "nothing", "flow in pipes"]
    (tmp_path / "cran.qry.xml").write_text(
        "".join(f"<num>0{n}</num><title>{q}</title>\n" for n, q in enumerate(queries))
    )
    (tmp_path / "cranqrel.trec.txt").write_text("1 0 184 3\n1 0 29 -1\n1 0 999 2\n3 0 31 4\n")
    (tmp_path / "stsb-en-dev.csv").write_text("a cat,a kitten,4.5\na cat,a car,1\nrain falls,it rains,4\n")
    return tmp_path


def test_cranfield_is_binary_and_its_queries_are_numbered_by_position(data: Path) -> None:
    (task,) = (task for task in load_tasks(data) if isinstance(task, Retrieval))
    assert task.queries == {"1": "speed of wings", "3": "flow in pipes"}
    assert task.documents == DOCUMENTS
    assert task.qrels == {"1": {"184": 1}, "3": {"31": 1}}


def test_questions_of_pubmedqa_are_answered_by_their_own_abstract_and_beir_folders_are_tasks(data: Path) -> None:
    rows = {"7": {"QUESTION": "Does it?", "CONTEXTS": ["We asked.", "It does."], "LONG_ANSWER": "Yes."}}
    (data / "ori_pqal.json").write_text(json.dumps(rows))
    (data / "tiny/qrels").mkdir(parents=True)
    (data / "tiny/corpus.jsonl").write_text('{"_id": "d", "title": "A title", "text": "and text"}\n')
    (data / "tiny/queries.jsonl").write_text('{"_id": "q", "text": "a query"}\n')
    (data / "tiny/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    *_, pubmedqa, tiny = (task for task in load_tasks(data) if isinstance(task, Retrieval))
    assert pubmedqa.documents == {"7": "We asked. It does."}
    assert pubmedqa.queries == {"7": "Does it?"}
    assert pubmedqa.qrels == {"7": {"7": 1}}
    assert (tiny.name, tiny.documents, tiny.qrels) == ("tiny", {"d": "A title and text"}, {"q": {"d": 1}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--model", "nowhere"], "nowhere"), ([], "has no queries.jsonl")],
)
def test_a_model_or_task_that_cannot_be_read_is_one_line(data: Path, arguments: list[str], message: str) -> None:
    if not arguments:
        (data / "corpus.jsonl").write_text("no JSON\n")
    done = CliRunner().invoke(main, [str(data), *arguments])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert message in line


def test_report_has_the_means_of_input_embeddings_as_baselines(data: Path) -> None:
    done = CliRunner().invoke(main, [str(data), "-o", str(data / "results")], catch_exceptions=False)
    names = ["TF-IDF", "BM25", "fastvec-mini, mean of tokens", "fastvec-mini, weighted mean", "fastvec-mini"]
    lines = done.stdout.splitlines()
    assert [line.partition("  ")[0] for line in lines[2:7]] == names
    assert lines[0].split() == ["×", "100", "STS-B", "dev", "Cranfield"]
    assert sorted(path.name for path in (data / "results").iterdir()) == ["eval.json", "eval.png"]


def test_a_model_of_sentence_transformers_scores_as_fastvec_runs_it_and_is_no_baseline(data: Path) -> None:
    (data / "other").symlink_to(bundled_model())  # it opens in both
    arguments = [str(data), "--other", str(data / "other"), "-o", str(data / "results")]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    scores = json.loads((data / "results/eval.json").read_text())["scores"]
    other, own = (
        {(score["task"], score["measure"]): score["value"] for score in scores if score["name"] == name}
        for name in ("other", "fastvec-mini")
    )
    assert other == pytest.approx(own)
    assert len(own) > 1
    assert "other" in done.stdout.partition("against the best baseline")[2]
