import json
from pathlib import Path

import pytest

from fastvec.checkpoints.checkpoint import resolve
from fastvec.errors import ModelError
from fastvec.texts.from_transformers import tokenizer_from_transformers
from tests.helpers.checkpoints import copy, edit_json
from tests.helpers.tiny import save_decoder


def test_the_tokenizer_is_fast_and_keeps_its_special_tokens(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "llama", "llama", bos=True, eos=True)
    tokens = tokenizer_from_transformers(resolve(folder)).backend_tokenizer.encode("A whale").tokens
    assert (tokens[0], tokens[-1]) == ("<s>", "</s>")


def test_a_checkpoint_that_lower_cases(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy(tiny_llama, tmp_path / "lower")
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    lower, plain = tokenizer_from_transformers(resolve(folder)), tokenizer_from_transformers(resolve(tiny_llama))
    assert lower.backend_tokenizer.encode("A WHALE").ids == plain.backend_tokenizer.encode("a whale").ids


def test_a_damaged_tokenizer_is_one_line(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy(tiny_llama, tmp_path / "model")
    for damaged in ("", "{}", '{"model": {"type": "Nothing"}}'):
        (folder / "tokenizer.json").write_text(damaged)
        with pytest.raises(ModelError, match=f"the tokenizer in {folder} cannot be loaded") as error:
            tokenizer_from_transformers(resolve(folder))
        assert "\n" not in str(error.value)
