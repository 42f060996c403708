import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec.errors import RefusedError, UsageError
from fastvec.fingerprint import fingerprint_differences, refuse_another_job
from fastvec.training.plan import AdaptPlan, plan_adapt
from tests import ROOT
from tests.helpers.checkpoints import edit_json, last_token_folder


def plan(model: Path, **options: Any) -> AdaptPlan:
    unset = dict.fromkeys(("revision", "eval_pairs", "eval_every", "save_every"))
    defaults = {"objective": "mntp", "data": [ROOT / "tests/data/articles.parquet"], "column": "text", "adapters": ()}
    places = {"model": model, "output": Path("out"), "device": "cpu", "dtype": "float32", "merge": False}
    return plan_adapt(**{**defaults, **places, **unset, **options})


def test_a_job_is_the_same_in_any_number_of_processes_if_its_batches_are(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = plan(tiny_llama, batch_size=4).fingerprint
    with pytest.raises(RefusedError, match="another job: batch_size_of_all_processes was 4, now 2; replace it"):
        refuse_another_job(Path("out"), alone, plan(tiny_llama, batch_size=2).fingerprint)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for options in ({}, {"fsdp": True}, {"grad_cache": 1}):
        assert fingerprint_differences(alone, plan(tiny_llama, batch_size=2, **options).fingerprint) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"objective": "contrastive", "query": "q", "positive": "p"}, ["find: ", "passage: "]),
        ({"objective": "contrastive", "query": "q", "positive": "p", "instruction": "Go: "}, ["Go: ", "passage: "]),
        ({"objective": "simcse", "column": "q"}, ["", ""]),
        ({"objective": "simcse", "column": "q", "instruction": "Go: "}, ["Go: ", "Go: "]),
    ],
)
def test_pairs_are_trained_with_the_prompts_that_the_model_has_for_them(
    llama: Path, tmp_path: Path, options: dict[str, Any], expected: list[str]
) -> None:
    last_token_folder(llama)
    edit_json(llama / "config_sentence_transformers.json", prompts={"query": "find: ", "document": "passage: "})
    data = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"q": ["a"] * 9, "p": ["b"] * 9}), data)
    made = plan(llama, data=[data], **{"column": None, **options})
    prefixes = [made.settings.prefix(*prompt) for prompt in made.prompts]
    assert prefixes == expected
    assert made.fingerprint.get("prompts") == (expected if "query" in options else None)


def test_a_distillation_begun_without_the_neighbor_term_is_another_job(tiny_llama: Path, tmp_path: Path) -> None:
    vectors = pa.array([[1.0, 2.0]] * 9, pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"text": ["a text"] * 9, "embedding": vectors}), tmp_path / "v.parquet")
    now = plan(tiny_llama, objective="distil", data=[tmp_path / "v.parquet"]).fingerprint
    before = {key: value for key, value in now.items() if key != "loss"}
    with pytest.raises(RefusedError, match="another job: loss was null, now "):
        refuse_another_job(Path("out"), before, now)
    assert "loss" not in plan(tiny_llama).fingerprint


def test_what_cannot_be_split_is_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--fsdp splits the model over several processes, and this is one: start them"):
        plan(llama, fsdp=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert plan(llama, fsdp=True, full=True).fsdp
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(UsageError, match=r"cannot train all weights .*, because its embeddings are also its LM head"):
        plan(llama, fsdp=True, full=True)
    assert plan(llama, fsdp=True).fsdp


@pytest.mark.parametrize(("given", "trained", "saved"), [({}, 128, 512), ({"max_length": 64}, 64, 64)])
def test_a_default_length_of_training_does_not_shorten_what_is_embedded(
    tiny_llama: Path, given: dict[str, Any], trained: int, saved: int
) -> None:
    made = plan(tiny_llama, objective="simcse", **given)
    assert (made.settings.max_length, made.max_length) == (trained, saved)
