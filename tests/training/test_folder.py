import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

import fastvec
from fastvec import Encoder
from fastvec.loading import quiet_libraries
from tests.checkpoints import edit_json
from tests.tiny import SENTENCES, save_decoder

ARTICLES = Path(__file__).parent.parent / "data" / "articles.parquet"


def adapt(output: Path, model: Path, **options: Any) -> Path:
    """A short SimCSE at a rate that moves the weights."""
    settings: dict[str, Any] = {
        "steps": 3,
        "batch_size": 8,
        "max_length": 24,
        "lr": 2e-2,
        "dtype": "float32",
        "device": "cpu",
    }
    fastvec.adapt(
        objective="simcse", model=model, data=[ARTICLES], column="title", output=output, **(settings | options)
    )
    return output


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3's windows depend on what the config says of attention's direction."""
    return save_decoder(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapt(tmp_path_factory.mktemp("out") / "adapter", base)


@pytest.fixture(scope="module")
def merged(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapt(tmp_path_factory.mktemp("out") / "merged", base, merge=True, pool_tokens="all")


def encode(folder: Path) -> np.ndarray[Any, Any]:
    return Encoder.from_pretrained(folder, dtype="float32", device="cpu").encode(SENTENCES)


def test_an_adapter_runs_as_it_was_trained_and_moved_the_vectors(base: Path, adapter: Path) -> None:
    encoder = Encoder.from_pretrained(adapter, dtype="float32")
    checkpoint = encoder.settings.checkpoint
    assert (checkpoint.layout, checkpoint.bidirectional, checkpoint.pooled_tokens) == ("fastvec", True, "text")
    assert (encoder.settings.pooling, encoder.settings.max_length, encoder.settings.normalize) == ("mean", 24, True)
    vectors = encoder.encode(SENTENCES)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert np.abs(vectors - encode(base)).max() > 1e-2


def test_peft_opens_an_adapter_and_gives_the_same_vectors(base: Path, adapter: Path) -> None:
    model = AutoModel.from_pretrained(base)
    model.config.is_causal = False
    with quiet_libraries():
        tuned = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    for text, vector in zip(SENTENCES, encode(adapter), strict=True):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=24)["input_ids"]
        with torch.no_grad():
            states = tuned(input_ids=ids).last_hidden_state[0, 1:]  # without the BOS
        expected = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)


def test_a_merged_folder_gives_the_same_vectors_everywhere(base: Path, merged: Path) -> None:
    vectors = encode(merged)
    assert np.abs(vectors - encode(base)).max() > 1e-2
    sentence_transformer = SentenceTransformer(str(merged), device="cpu")
    np.testing.assert_allclose(sentence_transformer.encode(SENTENCES), vectors, atol=1e-5)
    model, tokenizer = AutoModel.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    for text, vector in zip(SENTENCES, vectors, strict=True):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=24)["input_ids"]
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)


def test_merging_changes_no_vector(base: Path, merged: Path) -> None:
    """The adapter beside the merged weights, on its base, is the same model."""
    apart = Encoder.from_pretrained(
        base, adapters=[merged / "adapter"], dtype="float32", device="cpu", max_length=24
    ).encode(SENTENCES)
    pooled = Encoder.from_pretrained(merged, dtype="float32", device="cpu")
    assert pooled.settings.pooled_tokens == "all"
    edit_json(merged / "fastvec.json", encoder={"pooled_tokens": "text", "max_length": 24})
    try:
        np.testing.assert_allclose(encode(merged), apart, atol=1e-5)
    finally:
        edit_json(merged / "fastvec.json", encoder={"pooled_tokens": "all", "max_length": 24})


def test_without_the_same_pooled_tokens_no_files_of_sentence_transformers_are_written(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="fastvec"):
        folder = adapt(tmp_path / "out", tiny_llama, merge=True)
    assert not (folder / "modules.json").exists()
    assert "adapt with --pool-tokens all for a folder that it opens" in caplog.text
    without_bos = save_decoder(tmp_path / "without-bos", "llama", bos=False)
    assert (adapt(tmp_path / "all", without_bos, merge=True) / "modules.json").exists()


def test_llm2vec_finds_its_own_settings_and_names(adapter: Path) -> None:
    from safetensors.torch import load_file

    assert json.loads((adapter / "llm2vec_config.json").read_text()) == {
        "pooling_mode": "mean",
        "max_length": 24,
        "doc_max_length": 24,
        "skip_instruction": True,
    }
    names = load_file(adapter / "adapter_model.safetensors").keys()
    assert all(name.startswith("base_model.model.layers.") for name in names)  # LLM2Vec trains without an LM head
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert len(settings) == 14  # an older peft refuses a setting it does not know
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (16, 32, 0.05)


def test_the_record_tells_how_it_was_made(adapter: Path, base: Path) -> None:
    record = json.loads((adapter / "fastvec.json").read_text())
    assert record["base"] == {"model": str(base), "revision": None}
    fingerprint = record["fingerprint"]
    assert (fingerprint["objective"], fingerprint["steps"], fingerprint["attention_dropout"]) == ("simcse", 3, 0.3)
    assert fingerprint["data"][0][0][0] == str(ARTICLES)
    assert record["results"]["tokens"] > 100
    card = (adapter / "README.md").read_text()
    assert "| temperature | 0.05 |" in card
    assert "| held_out_after |" in card


def test_a_damaged_record_is_told(tiny_llama: Path, tmp_path: Path) -> None:
    folder = adapt(tmp_path / "out", tiny_llama, merge=True)
    edit_json(folder / "fastvec.json", format=99)
    with pytest.raises(fastvec.FastvecError, match="is of format 99: this version reads format 1"):
        encode(folder)
    edit_json(folder / "fastvec.json", format=1, encoder={"pooling": "max"})
    with pytest.raises(fastvec.FastvecError, match="by 'max': it is damaged"):
        encode(folder)


def test_an_adapter_below_is_merged_too(base: Path, adapter: Path, tmp_path: Path) -> None:
    """At a learning rate of 0 nothing is added to it."""
    still = adapt(tmp_path / "out", base, adapters=[adapter], merge=True, lr=0.0)
    np.testing.assert_allclose(encode(still), encode(adapter), atol=1e-5)
