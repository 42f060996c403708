import json
import signal
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastvec import Encoder, evaluate
from fastvec.cli.entry import main
from fastvec.errors import InputError, ModelError, RefusedError, UsageError
from fastvec.evaluation import evaluate as module
from fastvec.evaluation.contestants import Model
from fastvec.evaluation.report import EvalReport
from fastvec.settings import EncoderSettings
from fastvec.training.scored_pairs import spearman
from tests.evaluation.data import save_beir
from tests.helpers.checkpoints import last_token_folder, save_adapter
from tests.helpers.tiny import save_decoder

PAIRS = [
    ("a cat sleeps", "a kitten sleeps", 4.5),
    ("a cat sleeps", "the market fell", 0.5),
    ("two dogs run", "a dog runs", 4),
    ("a man plays a guitar", "a woman plays a flute", 2),
    ("rain falls", "it is raining", 5),
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["sentence1,sentence2,score", *(",".join(map(str, row)) for row in PAIRS)]))
    return path


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.from_pretrained()


def values(report: EvalReport, name: str) -> dict[str, float]:
    return {score.measure: score.value for score in report.scores if score.name == name}


def test_whole_report(pairs: Path, encoder: Encoder, tmp_path: Path) -> None:
    report = evaluate(encoder, pairs=pairs, beir=save_beir(tmp_path / "toy"))
    assert report.columns == [("pairs", "Spearman"), *(("toy", one) for one in ("nDCG@10", "recall@100", "MRR@10"))]
    assert report.names == ("TF-IDF", "BM25", "fastvec-mini")
    assert set(report.of(("pairs", "Spearman"))) == {"TF-IDF", "fastvec-mini"}
    first, second = (encoder.encode([pair[side] for pair in PAIRS]) for side in (0, 1))
    expected = spearman((first * second).sum(axis=1), np.array([pair[2] for pair in PAIRS]))
    found = report.of(("pairs", "Spearman"))["fastvec-mini"]
    assert found.value == pytest.approx(expected)
    assert found.low <= found.value <= found.high
    base = report.of(("pairs", "Spearman"))["TF-IDF"]
    (difference,) = found.differences
    assert difference.other == "TF-IDF"
    assert difference.value == pytest.approx(found.value - base.value)
    assert base.differences == ()
    recall = values(report, "fastvec-mini")["recall@100"]
    assert recall == pytest.approx((1 + 1 / 2) / 2)  # everything is found, but one of two documents is not there


def test_models_are_compared_with_the_first(pairs: Path, encoder: Encoder, tmp_path: Path) -> None:
    decoder = save_decoder(tmp_path / "decoder", "llama")
    report = evaluate([encoder, decoder], pairs=pairs)
    found = report.of(("pairs", "Spearman"))
    assert report.names == ("TF-IDF", "fastvec-mini", str(decoder))
    assert [one.other for one in found["fastvec-mini"].differences] == ["TF-IDF"]
    assert [one.other for one in found[str(decoder)].differences] == ["TF-IDF", "fastvec-mini"]
    difference = found[str(decoder)].differences[1]
    assert difference.value == pytest.approx(found[str(decoder)].value - found["fastvec-mini"].value)
    with pytest.raises(UsageError, match="fastvec-mini takes part twice: give each model once"):
        evaluate([encoder, None], pairs=pairs, baselines=False)


def test_names_are_checked_before_any_model_is_loaded(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "judged", lambda *_: pytest.fail("a model was judged"))
    with pytest.raises(UsageError, match="fastvec-mini takes part twice"):
        evaluate([None, None], pairs=pairs)


def test_manhattan_distance_is_refused_before_a_model_is_loaded(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = last_token_folder(save_decoder(tmp_path / "decoder", "llama"))
    (decoder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "manhattan"}')
    with monkeypatch.context() as patch:
        patch.setattr(module, "judged", lambda *_: pytest.fail("a model was judged"))
        with pytest.raises(UsageError, match="Manhattan distance, by which eval does not search, as toy needs: give"):
            evaluate([None, decoder], pairs=pairs, beir=save_beir(tmp_path / "toy"))
    report = evaluate(decoder, pairs=pairs, baselines=False)
    assert report.models[0]["similarity"] == "manhattan"


def test_one_model_at_a_time_is_in_memory(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[Encoder]] = []
    before: list[int] = []

    class Noted(Encoder):
        def __init__(self, settings: EncoderSettings) -> None:
            before.append(sum(one() is not None for one in loaded))
            super().__init__(settings)
            loaded.append(weakref.ref(self))

    monkeypatch.setattr(module, "Encoder", Noted)
    decoder = save_decoder(tmp_path / "decoder", "llama")
    evaluate([None, decoder], pairs=pairs, baselines=False)
    assert before == [0, 0]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads an attribute transformers renamed
def test_an_adapter_is_merged_into_the_only_model(pairs: Path, encoder: Encoder, tmp_path: Path) -> None:
    decoder = save_decoder(tmp_path / "decoder", "llama")
    adapter = save_adapter(decoder, tmp_path / "adapter")
    report = evaluate(decoder, adapters=[adapter], pairs=pairs, baselines=False)
    assert report.names == (f"{decoder}+adapter",)
    for models in ([decoder, None], [encoder]):
        with pytest.raises(UsageError, match="--adapter is for one model"):
            evaluate(models, adapters=[adapter], pairs=pairs)


def test_an_input_that_is_not_there_leaves_no_folder(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        evaluate(pairs=tmp_path / "nowhere.csv", output=tmp_path / "results")
    with pytest.raises(ModelError):
        evaluate(tmp_path / "nowhere", pairs=pairs, output=tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_instructions_reach_their_texts(encoder: Encoder) -> None:
    model = Model(encoder, instruction="Find the same:", query_instruction="Find an answer:")
    queries, documents = model.retrieval_vectors(["rain"], ["rain"])
    (text,), other = model.vectors(["rain"], [])
    plain = encoder.encode("rain")
    assert len(other) == 0
    for found, expected in (
        (queries[0], encoder.encode("rain", "Find an answer:")),
        (documents[0], plain),
        (text, encoder.encode("rain", "Find the same:")),
    ):
        assert found == pytest.approx(expected, abs=1e-5)  # the batches differ
    assert np.abs(queries[0] - text).max() > 1e-4  # ten times what the same texts may differ by
    assert np.abs(queries[0] - plain).max() > 1e-4


def test_output(pairs: Path, encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "results"
    report = evaluate(encoder, pairs=pairs, output=folder)
    assert json.loads((folder / "eval.json").read_text()) == json.loads(json.dumps(report.to_json()))
    assert (folder / "eval.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RefusedError, match=r"eval.json exists: replace it with --overwrite"):
        evaluate(encoder, pairs=pairs, output=folder)
    evaluate(encoder, pairs=pairs, output=folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["eval.json", "eval.png"]


def test_a_wrong_model_ends_the_run_before_any_is_judged(pairs: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        evaluate([None, pairs.parent / "nowhere"], pairs=pairs)


def test_missing_package_names_the_extra(pairs: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name in ("sklearn", "bm25s") else name)
    with pytest.raises(UsageError, match=r"these tasks need scikit-learn: pip install 'fastvec\[eval\]'"):
        evaluate(encoder, pairs=pairs)
    evaluate(encoder, pairs=pairs, baselines=False)
    with pytest.raises(UsageError, match="need bm25s and scikit-learn:"):
        evaluate(encoder, beir="toy")


def run(arguments: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["fastvec", "eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capfd.readouterr()
    return int(ended.value.code or 0), captured.out if not ended.value.code else captured.err


def test_command(pairs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    code, printed = run(["--pairs", pairs], monkeypatch, capfd)
    assert code == 0
    lines = [line.split() for line in printed.splitlines()]
    assert lines[0] == ["×", "100", "pairs"]
    assert lines[1] == ["Spearman"]
    assert [line[0] for line in lines[2:4]] == ["TF-IDF", "fastvec-mini"]
    assert "against the best baseline" in printed
    code, printed = run(["--pairs", pairs, "--json", "--no-baselines", "--quiet"], monkeypatch, capfd)
    assert [score["name"] for score in json.loads(printed)["scores"]] == ["fastvec-mini"]
    code, printed = run(["--pairs", pairs, "--pair-columns", "a,b,c"], monkeypatch, capfd)
    assert code == 1
    assert printed.startswith(f"fastvec: {pairs}: there is no column 'c'")
    assert run([], monkeypatch, capfd)[0] == 2


def test_a_signal_leaves_no_file(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "write_at", lambda *_: signal.raise_signal(signal.SIGTERM))
    arguments = ["--pairs", pairs, "-o", tmp_path / "results", "--quiet"]
    assert run(arguments, monkeypatch, capfd) == (143, "fastvec: stopped\n")
    assert list((tmp_path / "results").iterdir()) == []
