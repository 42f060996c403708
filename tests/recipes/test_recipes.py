"""Run the recipes end to end, up to the final table, with a few steps."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes import pretrain, stages
from tests import ARTICLES
from tests.helpers.tiny import SENTENCES


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes") / "decoder"
    sizes = "--vocabulary 400 --width 64 --layers 1 --max-length 32 --batch-size 4 --steps 6 --save-every 4 --lr 1e-2"
    pretrain.main([str(ARTICLES), "--column", "text", "-o", str(folder), *sizes.split()], standalone_mode=False)
    return folder


def test_a_pretrained_decoder_opens_in_transformers_causal_and_knows_more_than_chance(decoder: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(decoder), AutoModelForCausalLM.from_pretrained(decoder)
    ids = tokenizer(SENTENCES[0], return_tensors="pt")["input_ids"]
    assert ids[0, 0] == tokenizer.bos_token_id
    with torch.no_grad():
        output = model(input_ids=ids, labels=ids)
        shorter = model(input_ids=ids[:, :4]).logits
    assert output.loss.item() < np.log(400) - 0.2
    torch.testing.assert_close(output.logits[:, :4], shorter)
    assert not (decoder / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("distilled", [False, True])
def test_the_stages_are_measured_and_tabled(decoder: Path, tmp_path: Path, distilled: bool) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("\n".join(f'"{SENTENCES[i]}","{SENTENCES[j]}",{i * j % 5}' for i in range(5) for j in range(i)))
    texts = pq.read_table(str(ARTICLES))["title"].to_pylist()
    vectors = np.random.default_rng(0).standard_normal((len(texts), 8)).astype(np.float32)
    pq.write_table(pa.table({"text": texts, "embedding": list(vectors)}), tmp_path / "vectors.parquet")
    command = [str(decoder), "-o", str(tmp_path / "out"), "--text", str(ARTICLES), "--pairs", str(pairs)]
    command += ["--vectors", str(tmp_path / "vectors.parquet"), "--distil-steps", "1"] if distilled else []
    steps = ["--seeds", "2", "--max-length", "16", "--mntp-steps", "1", "--simcse-steps", "1", "--mntp-lr", "1e-2"]
    stages.main(command + steps, standalone_mode=False)
    rows = json.loads((tmp_path / "out" / "stages.json").read_text())
    expected = list(stages.STAGES) if distilled else list(stages.STAGES)[:-1]
    assert [(row["seed"], row["stage"]) for row in rows] == [(s, x) for s in (0, 1) for x in expected]
    by_stage = {row["stage"]: row["spearman"] for row in rows if row["seed"] == 0}
    assert len(set(by_stage.values())) >= len(expected) - 1  # the stages are different models
    lines = (tmp_path / "out" / "stages.md").read_text().splitlines()
    assert lines[2].startswith("| causal, as pretrained | ")
    assert " ± 0.00 |" in lines[2]
    assert len(lines) == 2 + len(expected)
    assert all("nan" not in line for line in lines)


def test_sentences_are_cut_where_they_end(tmp_path: Path) -> None:
    stages.write_sentences((str(ARTICLES),), "text", tmp_path / "sentences.parquet")
    found = pq.read_table(tmp_path / "sentences.parquet")["sentence"].to_pylist()
    assert len(found) > 500
    assert all(30 <= len(sentence) <= 220 and sentence == sentence.strip() for sentence in found)
