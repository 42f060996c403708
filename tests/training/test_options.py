import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fastvec
from fastvec.errors import InputError, UsageError
from tests.helpers.checkpoints import add_tokens, copy
from tests.helpers.tiny import SENTENCES


def test_useless_options_are_warned_about(tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, texts = tmp_path / "data.parquet", SENTENCES * 20
    pq.write_table(pa.table({"text": texts, "answer": texts[::-1]}), data)
    small: dict[str, Any] = {
        "steps": 1,
        "batch_size": 2,
        "max_length": 16,
        "dtype": "float32",
        "device": "cpu",
        "overwrite": True,
    }

    def warnings(**options: Any) -> list[str]:
        caplog.clear()
        given = {"objective": "mntp", "column": "text", **small, **options}
        with caplog.at_level(logging.WARNING, "fastvec"):
            fastvec.adapt(model=tiny_llama, data=[data], output=tmp_path / "out", **given)
        return caplog.messages

    assert warnings(lr=0) == ["--lr 0 trains nothing: the weights stay as they are"]
    pairs = {"objective": "contrastive", "column": None}
    assert warnings(**pairs, query="text", positive="text") == [
        "--query and --positive are both 'text': training on pairs of identical texts has no effect"
    ]


@pytest.mark.parametrize("objective", ["mntp", "simcse"])
def test_a_text_with_a_token_without_an_embedding_is_named(tiny_llama: Path, tmp_path: Path, objective: str) -> None:
    model, data = copy(tiny_llama, tmp_path / "model"), tmp_path / "data.parquet"
    add_tokens(model, "<pad>", special=True)
    pq.write_table(pa.table({"text": [*SENTENCES * 20, "a <pad> b"] * 4}), data)
    with pytest.raises(
        InputError, match="a text has the token '<pad>', which the model has no embedding for: remove the text"
    ):
        fastvec.adapt(
            objective=objective,
            model=model,
            data=[data],
            output=tmp_path / "out",
            steps=1,
            batch_size=4,
            max_length=16,
            device="cpu",
        )


def test_eos_and_attention_that_were_asked_for_stay_with_the_folder(tiny_llama: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.parquet"
    pq.write_table(pa.table({"text": SENTENCES * 20}), data)
    small: dict[str, Any] = {"steps": 1, "batch_size": 4, "max_length": 16, "dtype": "float32", "device": "cpu"}
    given: dict[str, Any] = {
        "model": tiny_llama,
        "data": [data],
        "output": tmp_path / "out",
        "bidirectional": False,
        "eos": True,
    }
    with pytest.raises(UsageError, match="mntp trains bidirectional attention: omit --causal"):
        fastvec.adapt(objective="mntp", **given, **small)
    fastvec.adapt(objective="simcse", **given, **small)
    encoder = fastvec.Encoder.from_pretrained(tmp_path / "out")
    assert not encoder.settings.bidirectional
    assert encoder.tokenizer()(["a"]).ids[-1] == 1
