import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

import fastvec
from fastvec import Encoder
from fastvec.checkpoints.bundled import bundled_model
from fastvec.system.libraries import quiet_libraries
from fastvec.training.saved_folder import save_modules
from tests import ARTICLES
from tests.helpers.checkpoints import edit_json, save_adapter
from tests.helpers.tiny import SENTENCES, save_decoder


def adapt(output: Path, model: Path, **options: Any) -> Path:
    """Run a short SimCSE with a learning rate that changes the weights."""
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


@pytest.fixture(scope="module", params=["llama", pytest.param("gemma3_text", marks=pytest.mark.slow)])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Includes Gemma 3, whose windows depend on the attention direction in its config."""
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
    """The adapter saved beside the merged weights, on its base, is the same model."""
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


@pytest.mark.slow
def test_without_the_same_pooled_tokens_no_files_of_sentence_transformers_are_written(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="fastvec"):
        folder = adapt(tmp_path / "out", tiny_llama, merge=True)
    assert not (folder / "modules.json").exists()
    assert "adapt with --pool-tokens all for a folder that it can open" in caplog.text
    without_bos = save_decoder(tmp_path / "without-bos", "llama", bos=False)
    assert (adapt(tmp_path / "all", without_bos, merge=True) / "modules.json").exists()


@pytest.mark.slow
def test_a_rule_that_sentence_transformers_does_not_have_leaves_out_its_files(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = adapt(tmp_path / "first", tiny_llama, merge=True, pool_tokens="all")
    edit_json(first / "fastvec.json", encoder={"append_eos": True})
    with caplog.at_level("INFO", logger="fastvec"):
        second = adapt(tmp_path / "second", first, merge=True, pool_tokens="all")
    assert not (second / "modules.json").exists()
    assert "sentence-transformers has no append_eos, so its files were not written" in caplog.text


@pytest.mark.slow
def test_where_llm2vec_would_make_other_vectors_it_finds_no_settings(tiny_llama: Path, tmp_path: Path) -> None:
    assert not (adapt(tmp_path / "causal", tiny_llama, bidirectional=False) / "llm2vec_config.json").exists()
    chat = Path(shutil.copytree(tiny_llama, tmp_path / "Llama-2-7b-chat-hf"))
    assert not (adapt(tmp_path / "of-chat", chat) / "llm2vec_config.json").exists()


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
    assert len(settings) == 14  # older versions of peft reject unknown settings
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (16, 32, 0.05)


def test_the_record_tells_how_it_was_made(adapter: Path, base: Path) -> None:
    record = json.loads((adapter / "fastvec.json").read_text())
    assert record["base"] == {"model": str(base), "revision": None, "adapters": []}
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
    with pytest.raises(fastvec.FastvecError, match="has format 99: this version reads format 1"):
        encode(folder)
    edit_json(folder / "fastvec.json", format=1, encoder={"pooling": "max"})
    with pytest.raises(fastvec.FastvecError, match=r"has pooling 'max', .*: it is damaged"):
        encode(folder)
    edit_json(folder / "fastvec.json", encoder={"prompts": {"query": 3}})
    with pytest.raises(fastvec.FastvecError, match=r"fastvec\.json has a prompt that is not a string"):
        encode(folder)


def test_an_adapter_below_is_merged_too(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A learning rate of 0 adds nothing. No adapter is saved beside: it would need the base and the adapter below."""
    still = adapt(tmp_path / "out", base, adapters=[adapter], merge=True, lr=0.0)
    np.testing.assert_allclose(encode(still), encode(adapter), atol=1e-5)
    assert not (still / "adapter").exists()
    assert json.loads((still / "fastvec.json").read_text())["base"]["adapters"] == [str(adapter)]
    assert f"made from `{base}` and `{adapter}` by" in (still / "README.md").read_text()


GEMMA4 = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 4,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 512,
    "global_head_dim": 32,
}


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("gemma4_text", GEMMA4),
        pytest.param("nemotron", {}, marks=pytest.mark.slow),
        pytest.param("stablelm", {"use_qkv_bias": True}, marks=pytest.mark.slow),
    ],
)
def test_a_merged_folder_is_bidirectional_everywhere_for_a_text_alone(
    family: str, sizes: dict[str, Any], tmp_path: Path
) -> None:
    """gemma4_text has another key for it; the others do not tell SDPA, which is causal by default without a mask."""
    base = save_decoder(tmp_path / "base", family, bos=False, **sizes)
    merged = adapt(tmp_path / "merged", base, merge=True)
    encoder = Encoder.from_pretrained(merged, dtype="float32", device="cpu")
    assert encoder.settings.bidirectional
    model, tokenizer = AutoModel.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    sentence_transformer = SentenceTransformer(str(merged), device="cpu")
    for text, vector in zip(SENTENCES, encoder.encode(SENTENCES), strict=True):
        np.testing.assert_allclose(sentence_transformer.encode([text])[0], vector, atol=1e-5)
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=24)["input_ids"]
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_card_of_an_adapter_on_an_adapter_has_the_lines_that_open_it_in_peft(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = adapt(tmp_path / "second", adapter, seed=1)
    third = adapt(tmp_path / "third", second, seed=2)
    lines = (third / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert len(lines.splitlines()) == 4
    assert "```python" not in (adapter / "README.md").read_text()
    monkeypatch.chdir(third)
    names: dict[str, Any] = {"AutoModel": AutoModel, "PeftModel": PeftModel}
    with quiet_libraries():
        exec(lines, names)  # the code that the model card tells users to run
    tokenizer = AutoTokenizer.from_pretrained(third)
    for text, vector in zip(SENTENCES, encode(third), strict=True):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=24)["input_ids"]
        with torch.no_grad():
            states = names["model"].eval()(input_ids=ids).last_hidden_state[0, 1:]
        expected = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads an attribute transformers renamed
def test_an_adapter_on_one_made_elsewhere_has_no_lines_that_might_not_fit(tiny_llama: Path, tmp_path: Path) -> None:
    below = save_adapter(tiny_llama, tmp_path / "below")
    card = (adapt(tmp_path / "out", below) / "README.md").read_text()
    assert "The base is itself an adapter" in card
    assert "```python" not in card


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder with prompts, one of them the default, that truncates its vectors."""
    folder = save_decoder(tmp_path_factory.mktemp("models") / "sentence", "llama", bos=False)
    prompts = {"query": "Instruct: find it\nQuery:", "document": ""}
    save_modules(
        folder, pooling="mean", hidden_size=64, max_length=24, dims=32, prompts=prompts, default_prompt_name="query"
    )
    edit_json(folder / "config.json", is_causal=False)
    return folder


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"merge": True}, marks=pytest.mark.slow), {"merge": True, "pool_tokens": "text"}]
)
def test_prompts_and_dims_of_a_sentence_transformers_folder_are_kept(
    options: dict[str, Any], sentence_model: Path, tmp_path: Path
) -> None:
    out = adapt(tmp_path / "out", sentence_model, lr=0.0, **options)
    before, after = (Encoder.from_pretrained(path, dtype="float32", device="cpu") for path in (sentence_model, out))
    trained = json.loads((out / "fastvec.json").read_text())["fingerprint"]["instruction"]
    assert after.settings.prefix() == trained == "Instruct: find it\nQuery:"
    assert after.settings.prefix("Query:") == "Query:"
    assert after.dims == 32
    for name in ("query", "document", None):
        vectors = after.encode(SENTENCES, prompt_name=name)
        if "pool_tokens" not in options:
            np.testing.assert_allclose(vectors, before.encode(SENTENCES, prompt_name=name), atol=1e-5)
        if "merge" in options:
            own = SentenceTransformer(str(out), device="cpu").encode(SENTENCES, prompt_name=name)
            # sentence-transformers truncates after normalizing
            np.testing.assert_allclose(vectors, own / np.linalg.norm(own, axis=1, keepdims=True), atol=1e-5)


def test_what_is_distilled_is_not_cut(sentence_model: Path, tmp_path: Path) -> None:
    """The vectors are in the teacher's space and are learned at full width."""
    corpus, vectors = tmp_path / "corpus.parquet", tmp_path / "vectors.arrow"
    pq.write_table(pa.table({"text": SENTENCES}), corpus)
    fastvec.embed([corpus], vectors, encoder=Encoder.from_pretrained(sentence_model, dims=64), keep=["text"])
    options: dict[str, Any] = {"steps": 1, "batch_size": 2, "hold_out": 0.0, "device": "cpu"}
    out = tmp_path / "out"
    fastvec.adapt(objective="distil", model=sentence_model, data=[vectors], column="text", output=out, **options)
    assert encode(out).shape == (len(SENTENCES), 64)


@pytest.mark.slow
def test_weights_without_the_head_that_mntp_needs_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"steps": 1, "batch_size": 2, "max_length": 24, "device": "cpu", "merge": True}
    options = {"objective": "mntp", "data": [ARTICLES], "column": "title", **options}
    for tied in (True, False):
        base = save_decoder(tmp_path / f"base-{tied}", "llama", tie_word_embeddings=tied)
        with caplog.at_level("INFO", logger="fastvec"):
            fastvec.adapt(model=base, output=tmp_path / f"out-{tied}", **options)
        assert ("saved without their LM head" in caplog.text) is not tied
    assert "give the adapter in the folder adapter as --model" in caplog.text
    fastvec.adapt(model=tmp_path / "out-False" / "adapter", output=tmp_path / "more", **options)


def test_an_adapter_on_the_bundled_model_names_a_folder_that_peft_finds(tmp_path: Path) -> None:
    """The bundled model has a Dense layer, which only distillation trains."""
    corpus, vectors = tmp_path / "corpus.parquet", tmp_path / "vectors.arrow"
    pq.write_table(pa.table({"text": SENTENCES}), corpus)
    fastvec.embed([corpus], vectors, encoder=Encoder.from_pretrained(device="cpu"), keep=["text"])
    options: dict[str, Any] = {"steps": 1, "batch_size": 2, "hold_out": 0.0, "lr": 0.0, "device": "cpu"}
    out = tmp_path / "out"
    fastvec.adapt(objective="distil", model=None, data=[vectors], column="text", output=out, **options)
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(bundled_model().resolve())
    np.testing.assert_allclose(encode(out), encode(bundled_model()), atol=1e-5)


@pytest.mark.slow
def test_merged_weights_keep_the_noise_that_the_architecture_trains_with(tmp_path: Path) -> None:
    noise: dict[str, Any] = {"router_jitter_noise": 0.01, "attention_dropout": 0.1}
    experts = save_decoder(tmp_path / "mixtral", "mixtral", num_local_experts=4, **noise)
    config = json.loads((adapt(tmp_path / "out", experts, steps=1, merge=True) / "config.json").read_text())
    assert {name: config[name] for name in noise} == noise
