"""Checkpoints as they are published: what their publishers' tools did is done here, or they are refused."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from fastvec import Encoder
from fastvec.checkpoint import resolve
from fastvec.errors import ModelError
from fastvec.settings import resolve_settings
from tests.checkpoints import copy, edit_json
from tests.tiny import SENTENCES, save_decoder

FLOAT32_ROUNDING = 1e-5  # two layers of 64 dimensions, states near 1: tens of roundings of 6e-8 each


@pytest.fixture
def llama(tiny_llama: Path, tmp_path: Path) -> Path:
    return copy(tiny_llama, tmp_path / "model")


def last_token_folder(folder: Path) -> Path:
    """The layout of e5-mistral and its kin: sentence-transformers' modules, the last token pooled."""
    (folder / "1_Pooling").mkdir()
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    edit_json(folder / "1_Pooling" / "config.json", word_embedding_dimension=64, pooling_mode_lasttoken=True)
    return folder


def last_states(folder: Path, before: list[int], after: list[int], *, causal: bool = True) -> npt.NDArray[np.float32]:
    """The last hidden state of each sentence between these special tokens, by transformers, one sentence at a time."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    model.config.is_causal = causal
    tokenizer = AutoTokenizer.from_pretrained(folder)
    states = []
    for text in SENTENCES:
        ids = [*before, *tokenizer(text, add_special_tokens=False).input_ids, *after]
        with torch.no_grad():
            states.append(model(torch.tensor([ids])).last_hidden_state[0, -1].numpy())
    return np.stack(states)


BOS, EOS = [0], [1]  # the ids in the tiny tokenizer, whose template holds BOS alone


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        # e5-mistral, SFR-Embedding, Linq
        ({"tokenizer_class": "LlamaTokenizer", "add_eos_token": True}, BOS, EOS),
        ({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False, "add_eos_token": True}, [], EOS),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}, BOS, []),
        # gte-Qwen2
        (
            {
                "tokenizer_class": "Qwen2Tokenizer",
                "auto_map": {"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", None]},
                "add_bos_token": False,
                "add_eos_token": True,
            },
            [],
            EOS,
        ),
    ],
)
def test_bos_and_eos_are_those_the_publisher_trained_with(
    llama: Path, settings: dict[str, object], before: list[int], after: list[int]
) -> None:
    edit_json(last_token_folder(llama) / "tokenizer_config.json", backend=None, **settings)
    expected = last_states(llama, before, after)
    vectors = Encoder.from_pretrained(llama, dtype="float32", normalize=False).encode(SENTENCES)
    np.testing.assert_allclose(vectors, expected, atol=FLOAT32_ROUNDING)


def test_one_line_says_what_the_flags_changed(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(llama / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", add_eos_token=True)
    with caplog.at_level(logging.INFO, "fastvec"):
        Encoder.from_pretrained(llama)
    lines = [line for line in caplog.messages if "add_eos_token" in line]
    assert lines == [f"{llama}: sequences are <s> text </s> (in tokenizer.json <s> text): add_eos_token: true"]


def test_flags_that_agree_with_the_template_change_nothing(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(llama / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", add_bos_token=True)
    with caplog.at_level(logging.INFO, "fastvec"):
        Encoder.from_pretrained(llama)
    assert not [line for line in caplog.messages if "sequences are" in line]


def test_a_flag_of_a_class_that_did_not_read_it_is_left_to_the_user(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_json(last_token_folder(llama) / "tokenizer_config.json", add_eos_token=True)
    with_template, with_eos = last_states(llama, BOS, []), last_states(llama, BOS, EOS)
    for eos, expected, warned in ((None, with_template, 1), (True, with_eos, 0), (False, with_template, 0)):
        caplog.clear()
        encoder = Encoder.from_pretrained(llama, dtype="float32", normalize=False, eos=eos)
        np.testing.assert_allclose(encoder.encode(SENTENCES), expected, atol=FLOAT32_ROUNDING)
        assert len([line for line in caplog.messages if "--eos or --no-eos" in line]) == warned


def test_eos_can_be_taken_off_a_template(tmp_path: Path) -> None:
    folder = last_token_folder(save_decoder(tmp_path / "model", "qwen3", bos=False, eos=True))
    expected = last_states(folder, [], [])
    encoder = Encoder.from_pretrained(folder, dtype="float32", normalize=False, eos=False)
    np.testing.assert_allclose(encoder.encode(SENTENCES), expected, atol=FLOAT32_ROUNDING)


def test_another_eos_is_another_job(llama: Path) -> None:
    fingerprints = [resolve_settings(llama, eos=eos).fingerprint(None, None) for eos in (None, True, False)]
    assert len({str(fingerprint) for fingerprint in fingerprints}) == 3


def test_eos_of_a_tokenizer_that_names_none(llama: Path) -> None:
    edit_json(llama / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match="add_eos_token: true, and its tokenizer names no such token"):
        Encoder.from_pretrained(llama, eos=True)


def test_what_own_code_decides_is_asked_for(llama: Path) -> None:
    """stella_en_1.5B_v5: its own modeling_qwen.Qwen2Model, and a config.json that does not say what that does."""
    edit_json(last_token_folder(llama) / "config.json", auto_map={"AutoModel": "modeling_qwen.Qwen2Model"})
    with pytest.raises(ModelError, match=r"of its own, modeling_qwen\.Qwen2Model, .* by --bidirectional or --causal"):
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
            "llama_bidirectional_model.LlamaBidirectionalModel was published so",
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
    expected = "holds 4 tensors that a llama model .* does not read: " + ", ".join(sorted(names)[:3])
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
    [("base_model.model.", "merge the adapter"), ("language_model.", "save that part alone")],
)
def test_other_prefixes_are_named(llama: Path, prefix: str, remedy: str) -> None:
    with pytest.raises(ModelError, match=f"begin with {prefix}: .*{remedy}"):
        Encoder.from_pretrained(prefixed(llama, prefix))


def add_tokens(folder: Path, *contents: str, special: bool) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    size = max(token["id"] for token in content["added_tokens"]) + len(content["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    content["added_tokens"] += [{"id": size + i, "content": text, **flags} for i, text in enumerate(contents)]
    path.write_text(json.dumps(content))


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(llama: Path) -> None:
    add_tokens(llama, "whale", special=False)
    with pytest.raises(ModelError, match=r"has 1 tokens beyond the \d+ embeddings of the model, as 'whale'"):
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


@pytest.fixture
def sentencepiece_alone(tmp_path: Path) -> Path:
    """A model whose tokenizer is a SentencePiece model, as the first Llama and Mistral were published."""
    import sentencepiece

    folder = save_decoder(tmp_path / "model", "llama", vocab_size=400)
    (folder / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 50),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=360,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", backend=None, mask_token=None)
    return folder


def test_a_sentencepiece_model_alone_makes_its_own_tokens(sentencepiece_alone: Path) -> None:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(str(sentencepiece_alone / "tokenizer.model"))
    texts = Encoder.from_pretrained(sentencepiece_alone).tokenizer()(SENTENCES)
    for row, text in enumerate(SENTENCES):
        assert texts.sequence(row).tolist() == [processor.bos_id(), *processor.encode(text)]


def test_the_package_it_needs_is_named(sentencepiece_alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModelError, match=r"needs sentencepiece: pip install 'fastvec\[sentencepiece\]'"):
        Encoder.from_pretrained(sentencepiece_alone)
