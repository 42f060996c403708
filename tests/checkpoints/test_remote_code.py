"""Checkpoints published with their own code: fastvec reproduces what the code did, or refuses them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fastvec import Encoder
from fastvec.checkpoints.checkpoint import resolve
from fastvec.checkpoints.families import FAMILIES
from fastvec.decoders.from_transformers import HARMLESS
from fastvec.errors import ModelError
from tests.helpers.checkpoints import FLOAT32_ROUNDING, add_tokens, edit_json, last_states, last_token_folder
from tests.helpers.tiny import SENTENCES
from tests.helpers.tiny_families import tiny_config

BOS = [0]  # its id in the tiny tokenizer


def test_what_own_code_decides_is_asked_for(llama: Path) -> None:
    """As stella_en_1.5B_v5: its config.json does not say what its own modeling_qwen.Qwen2Model does."""
    edit_json(last_token_folder(llama) / "config.json", auto_map={"AutoModel": "modeling_qwen.Qwen2Model"})
    with pytest.raises(
        ModelError, match=r"in custom code, modeling_qwen\.Qwen2Model, .* with --bidirectional or --causal"
    ):
        Encoder.from_pretrained(llama)
    for bidirectional in (True, False):
        assert Encoder.from_pretrained(llama, bidirectional=bidirectional).settings.bidirectional is bidirectional


@pytest.mark.parametrize(
    ("config", "bidirectional", "reason"),
    [
        ({"is_causal": False}, True, "config.json says is_causal: false"),
        ({"is_causal": True}, False, "config.json says is_causal: true"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}, False, "config.json says neither"),
        (
            {"auto_map": {"AutoModel": "org/code--llama_bidirectional_model.LlamaBidirectionalModel"}},
            True,
            "llama_bidirectional_model.LlamaBidirectionalModel is published as bidirectional",
        ),
        ({"model_type": "llama_bidirec"}, True, "llama_bidirec is llama with bidirectional attention"),
    ],
)
def test_what_says_the_direction(llama: Path, config: dict[str, object], bidirectional: bool, reason: str) -> None:
    own_code = {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}
    edit_json(last_token_folder(llama) / "config.json", **{**own_code, **config})
    checkpoint = resolve(llama)
    assert checkpoint.bidirectional is bidirectional
    assert checkpoint.bidirectional_reason.startswith(reason)


def test_a_model_type_of_known_code_runs_as_what_it_is(llama: Path) -> None:
    expected = last_states(llama, BOS, [], causal=False)
    edit_json(last_token_folder(llama) / "config.json", model_type="llama_bidirec", pooling="avg", temperature=0.02)
    vectors = Encoder.from_pretrained(llama, dtype="float32", normalize=False).encode(SENTENCES)
    np.testing.assert_allclose(vectors, expected, atol=FLOAT32_ROUNDING)


def with_tensors(folder: Path, **tensors: torch.Tensor) -> Path:
    path = folder / "model.safetensors"
    save_file(load_file(path) | tensors, path, metadata={"format": "pt"})
    return folder


def test_tensors_that_nothing_reads_are_refused(llama: Path) -> None:
    names = [f"model.layers.{i}.self_attn.{part}_proj.bias" for i in (0, 1) for part in "qk"]
    with_tensors(llama, **{name: torch.ones(1) for name in names})
    expected = "has 4 tensors that a llama model .* does not use: " + ", ".join(sorted(names)[:3])
    with pytest.raises(ModelError, match=expected.replace(".", r"\.").replace(r" \.* ", " .* ")):
        Encoder.from_pretrained(llama)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "lm_head.weight",
        "score.weight",
        "visual.patch_embed.proj.weight",
        "vision_tower.encoder.layers.0.self_attn.q_proj.bias",
        "mtp.layers.0.mlp.up_proj.weight",
        "model.layers.0.self_attn.k_scale",
    ],
)
def test_tensors_that_no_state_depends_on_pass(llama: Path, name: str) -> None:
    expected = Encoder.from_pretrained(llama, dtype="float32").encode(SENTENCES)
    with_tensors(llama, **{name: torch.ones(1)})
    np.testing.assert_array_equal(Encoder.from_pretrained(llama, dtype="float32").encode(SENTENCES), expected)


def test_further_layers_pass_with_a_warning(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = Encoder.from_pretrained(llama, dtype="float32").encode(SENTENCES)
    first = {k: v for k, v in load_file(llama / "model.safetensors").items() if "layers.0." in k}
    with_tensors(llama, **{name.replace("layers.0.", "layers.2."): tensor.clone() for name, tensor in first.items()})
    vectors = Encoder.from_pretrained(llama, dtype="float32").encode(SENTENCES)
    np.testing.assert_allclose(vectors, expected, atol=FLOAT32_ROUNDING)
    assert [line for line in caplog.messages if "more layers than the 2 of num_hidden_layers" in line]


def prefixed(folder: Path, prefix: str) -> Path:
    path = folder / "model.safetensors"
    tensors = {prefix + name: tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(llama: Path, prefix: str) -> None:
    expected = Encoder.from_pretrained(llama, dtype="float32").encode(SENTENCES)
    vectors = Encoder.from_pretrained(prefixed(llama, prefix), dtype="float32").encode(SENTENCES)
    np.testing.assert_allclose(vectors, expected, atol=FLOAT32_ROUNDING)


@pytest.mark.parametrize(
    ("prefix", "remedy"),
    [("base_model.model.", r"merge_and_unload\(\) returns"), ("language_model.", "save only that part")],
)
def test_other_prefixes_are_named(llama: Path, prefix: str, remedy: str) -> None:
    with pytest.raises(ModelError, match=f"begin with {prefix}: .*{remedy}"):
        Encoder.from_pretrained(prefixed(llama, prefix))


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(llama: Path) -> None:
    add_tokens(llama, "whale", special=False)
    with pytest.raises(ModelError, match=r"has 1 tokens beyond the model's \d+ embeddings, e\.g\. 'whale'"):
        Encoder.from_pretrained(llama)


def test_a_special_token_without_an_embedding_fails_the_texts_that_hold_it(llama: Path) -> None:
    expected = Encoder.from_pretrained(llama, dtype="float32").encode(SENTENCES[:2])
    add_tokens(llama, "<pad>", special=True)
    encoder = Encoder.from_pretrained(llama, dtype="float32")
    texts = encoder.tokenizer()([SENTENCES[0], "a <pad> b", SENTENCES[1]])
    encoded = encoder.encode_tokens(texts)
    assert encoded.failed == {1: "token_without_embedding"}
    assert np.isnan(encoded.vectors[1]).all()
    np.testing.assert_allclose(encoded.vectors[[0, 2]], expected, atol=FLOAT32_ROUNDING)
    with pytest.raises(ModelError, match=r"text 0 has no vector \(token_without_embedding\): leave it out"):
        encoder.encode(["<pad>"])


def test_llm2vecs_own_class_is_bidirectional_in_a_sentence_transformers_folder_too(llama: Path) -> None:
    code = {"AutoModel": "modeling_llama_encoder.LlamaEncoderModel"}
    edit_json(last_token_folder(llama) / "config.json", auto_map=code)
    checkpoint = resolve(llama)
    assert (checkpoint.bidirectional, checkpoint.bidirectional_reason) == (True, "LLM2Vec trained it this way")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_heads_of_no_family_are_taken_for_unread_tensors(model_type: str) -> None:
    config = tiny_config(model_type)
    config.tie_word_embeddings = False
    try:
        model = AutoModelForCausalLM.from_config(config)
    except ValueError:
        pytest.skip("transformers has no causal language model of this family")
    prefix = f"{model.base_model_prefix}."
    unread = [name for name in model.state_dict() if not name.startswith(prefix)]
    assert [name for name in unread if not HARMLESS.search(name)] == []
