"""The model and the prompt for queries are those that the output names, and another model is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, embed
from fastvec.errors import ModelError, UsageError
from fastvec.output.reader import Output, read_output
from fastvec.vectors.query_encoder import encoder_for, query_prompt, query_settings
from fastvec.vectors.stored import open_vectors
from tests.helpers.checkpoints import save_adapter
from tests.helpers.tiny import SENTENCES, save_decoder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads an attribute that transformers renamed


def made(folder: Path, encoder: Encoder, **options: Any) -> Output:
    pq.write_table(pa.table({"text": SENTENCES}), folder / "a.parquet")
    embed([folder / "a.parquet"], folder / "vecs.arrow", encoder=encoder, **options)
    return read_output(folder / "vecs.arrow")


OPTIONS: list[dict[str, Any]] = [
    {},
    {"dims": 32},
    {"pooling": "last", "normalize": False, "bidirectional": False},
    {"max_length": 9},
    {"eos": True},
    {"eos": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_texts_as_queries_have_the_vectors_of_the_output(
    tmp_path: Path, tiny_llama: Path, options: dict[str, Any]
) -> None:
    output = made(tmp_path, Encoder.from_pretrained(tiny_llama, device="cpu", dtype="float32", **options))
    encoder = encoder_for(output, device="cpu")
    with open_vectors([output.path]) as vectors:
        (block,) = vectors.blocks(100)
        stored = vectors.floats(block)
    encoded = encoder.encode(SENTENCES, *query_prompt(output, encoder.settings))
    if encoder.settings.dtype == "float32":
        np.testing.assert_allclose(encoded, stored, atol=1e-5)
    assert encoder.settings.fingerprint("", None) | {"dtype": ""} == {
        name: output.fingerprint[name] for name in encoder.settings.fingerprint("", None)
    } | {"dtype": ""}


def test_a_model_that_is_elsewhere_or_has_adapters_is_given(tmp_path: Path, llama: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    output = made(tmp_path, Encoder.from_pretrained(llama, adapters=[adapter], device="cpu"))
    with pytest.raises(ModelError, match=r"vecs\.arrow was not made by .*llama as it is here, but by another weights"):
        query_settings(output)
    moved = llama.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"no such folder; vecs\.arrow names this model: give its folder with --model"):
        query_settings(output)
    settings = query_settings(output, model=moved, adapters=[adapter])
    assert settings.checkpoint.weights_hash == output.own["weights"]


def test_another_model_is_refused_also_if_its_vectors_are_narrower(tmp_path: Path, tiny_llama: Path) -> None:
    output = made(tmp_path, Encoder.from_pretrained(tiny_llama, device="cpu"))
    other = save_decoder(tmp_path / "other", "llama", seed=5)
    with pytest.raises(ModelError, match=r"was not made by .*other as it is here, but by another weights"):
        query_settings(output, model=other)
    with pytest.raises(ModelError, match=r"by another dims: give the model that made it .*llama"):
        encoder_for(output, Encoder.from_pretrained(tiny_llama, device="cpu", dims=8))


def with_prompts(folder: Path, prompts: dict[str, str]) -> Path:
    """Make the plain decoder in `folder` a sentence-transformers folder with these prompts."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return folder


@pytest.mark.parametrize(
    ("prompts", "options", "expected"),
    [
        ({"query": "find: ", "document": "text: "}, {"prompt_name": "document"}, "find: "),
        ({"query": "find: "}, {}, "find: "),
        ({"same": "topic: "}, {"prompt_name": "same"}, "topic: "),
        ({}, {"instruction": "as it is:"}, "as it is:"),
        ({}, {}, ""),
    ],
)
def test_queries_have_their_own_prompt_or_else_that_of_the_texts(
    tmp_path: Path, llama: Path, prompts: dict[str, str], options: dict[str, Any], expected: str
) -> None:
    output = made(tmp_path, Encoder.from_pretrained(with_prompts(llama, prompts), device="cpu"), **options)
    settings = query_settings(output, device="cpu")
    assert settings.prefix(*query_prompt(output, settings)) == expected


def test_a_given_prompt_or_instruction_takes_its_place(tmp_path: Path, llama: Path) -> None:
    output = made(tmp_path, Encoder.from_pretrained(with_prompts(llama, {"query": "q: ", "b": "b: "}), device="cpu"))
    settings = query_settings(output, device="cpu")
    assert settings.prefix(*query_prompt(output, settings, None, "b")) == "b: "
    assert settings.prefix(*query_prompt(output, settings, "find", None)) == "find"
    with pytest.raises(UsageError, match="no prompt named 'c'"):
        query_prompt(output, settings, None, "c")
    with pytest.raises(UsageError, match="both given"):
        query_prompt(output, settings, "x", "b")


def test_an_instruction_of_a_bare_decoder_is_the_same_for_queries(tmp_path: Path, tiny_llama: Path) -> None:
    output = made(tmp_path, Encoder.from_pretrained(tiny_llama, device="cpu"), instruction="Find texts:")
    settings = query_settings(output, device="cpu")
    assert settings.prefix(*query_prompt(output, settings)) == "Find texts: "


def test_a_model_in_the_working_folder_is_found_by_its_name(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.move(llama, tmp_path / "near")
    output = made(tmp_path, Encoder.from_pretrained("near", device="cpu"))
    assert query_settings(output).checkpoint.name == "near"
