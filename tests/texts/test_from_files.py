from pathlib import Path
from typing import Any

import pytest

from fastvec.checkpoints.checkpoint import resolve
from fastvec.texts.from_files import tokenizer_from_files
from fastvec.texts.from_transformers import tokenizer_from_transformers
from tests.helpers.checkpoints import copy, edit_json
from tests.helpers.tiny import SENTENCES, save_decoder


@pytest.mark.parametrize("bos", [True, False])
def test_the_tokens_are_those_of_transformers(tmp_path: Path, bos: bool) -> None:
    checkpoint = resolve(save_decoder(tmp_path, "llama", bos=bos, eos=True))
    found, expected = tokenizer_from_files(checkpoint), tokenizer_from_transformers(checkpoint)
    assert found is not None
    texts = [*SENTENCES, "", "<s> in a text", "  spaces "]
    for own, other in zip(
        found.backend_tokenizer.encode_batch(texts), expected.backend_tokenizer.encode_batch(texts), strict=True
    ):
        assert (own.ids, own.offsets) == (other.ids, other.offsets)
    for name in ("bos_token", "eos_token", "pad_token"):
        assert getattr(found, name) == getattr(expected, name)
        assert getattr(found, f"{name}_id") == getattr(expected, f"{name}_id")
    assert set(found.all_special_ids) == set(expected.all_special_ids)


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "LlamaTokenizer"},
        {"tokenizer_class": None},
        {"add_bos_token": True},
        {"pad_token": "<other>"},
        {"pad_token": "a"},
        {"chat_template": "{{ messages }}"},
    ],
    ids=str,
)
def test_a_tokenizer_that_transformers_changes_is_left_to_it(
    tiny_llama: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = copy(tiny_llama, tmp_path / "model")
    assert tokenizer_from_files(resolve(folder)) is not None
    edit_json(folder / "tokenizer_config.json", **settings)
    assert tokenizer_from_files(resolve(folder)) is None


def test_a_file_that_is_no_tokenizer_is_left_to_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy(tiny_llama, tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    assert tokenizer_from_files(resolve(folder)) is None
