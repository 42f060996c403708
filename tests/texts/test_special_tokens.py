"""Special tokens before and after a text: those that the checkpoint's publisher trained with."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from fastvec import Encoder, embed
from fastvec.checkpoints.checkpoint import resolve
from fastvec.errors import ModelError, UsageError
from fastvec.output.inspect import inspect
from fastvec.settings import resolve_settings
from fastvec.texts.from_transformers import tokenizer_from_transformers
from tests.helpers.checkpoints import FLOAT32_ROUNDING, edit_json, last_states, last_token_folder
from tests.helpers.tiny import SENTENCES, save_decoder

BOS, EOS = [0], [1]  # ids in the tiny tokenizer, whose template adds only BOS


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
    assert lines == [
        f"{llama}: sequences are <s> text </s>, instead of <s> text as with transformers 5: add_eos_token: true"
    ]


def test_a_saved_tokenizer_keeps_what_the_flags_settled(llama: Path, tmp_path: Path) -> None:
    edit_json(llama / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", add_eos_token=True)
    tokenizer_from_transformers(resolve(llama)).save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved("a").input_ids == [*BOS, *saved("a", add_special_tokens=False).input_ids, *EOS]


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


@pytest.mark.parametrize(
    ("eos", "lines"),
    [(None, []), (True, ["eos          appended to every sequence"]), (False, ["eos          not appended"])],
)
def test_an_output_says_whether_eos_ends_its_sequences(
    llama: Path, tmp_path: Path, eos: bool | None, lines: list[str]
) -> None:
    corpus, output = tmp_path / "c.parquet", tmp_path / "v.arrow"
    pq.write_table(pa.table({"text": SENTENCES}), corpus)
    embed([corpus], output, encoder=resolve_settings(llama, eos=eos))
    assert [line for line in str(inspect(output)).splitlines() if line.startswith("eos")] == lines


def test_eos_of_a_tokenizer_that_names_none(llama: Path) -> None:
    edit_json(llama / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match="needs add_eos_token: true, but its tokenizer does not define that token"):
        Encoder.from_pretrained(llama, eos=True)


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, True)])
def test_a_class_that_read_the_flags_has_its_defaults_without_them(tmp_path: Path, bos: bool, eos: bool) -> None:
    folder = last_token_folder(save_decoder(tmp_path / "model", "llama", bos=bos, eos=eos))
    expected = last_states(folder, BOS, [])
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast", backend=None)
    vectors = Encoder.from_pretrained(folder, dtype="float32", normalize=False).encode(SENTENCES)
    np.testing.assert_allclose(vectors, expected, atol=FLOAT32_ROUNDING)


def test_what_transformers_5_saved_is_as_its_template(tmp_path: Path) -> None:
    folder = last_token_folder(save_decoder(tmp_path / "model", "llama", bos=False, eos=True))
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", backend="tokenizers")
    vectors = Encoder.from_pretrained(folder, dtype="float32", normalize=False).encode(SENTENCES)
    np.testing.assert_allclose(vectors, last_states(folder, [], EOS), atol=FLOAT32_ROUNDING)


@pytest.mark.parametrize(
    ("model_type", "named_by", "bos"),
    [("llama", {}, True), ("mistral", {}, True), ("qwen2", {"tokenizer_class": "LlamaTokenizer"}, True)],
)
def test_the_class_is_config_jsons_or_the_model_types_where_none_is_named(
    llama: Path, model_type: str, named_by: dict[str, str], bos: bool
) -> None:
    edit_json(llama / "tokenizer_config.json", tokenizer_class=None, backend=None)
    edit_json(llama / "config.json", model_type=model_type, **named_by)
    (llama / "tokenizer.json").rename(llama / "tokenizer.model")  # only its name matters; it is not opened
    assert resolve(llama).special_tokens.bos is bos


def test_a_template_stays_where_nothing_tells_who_wrote_it(llama: Path) -> None:
    (llama / "tokenizer_config.json").unlink()
    assert Encoder.from_pretrained(llama).tokenizer()(["a"]).ids[0] == BOS[0]
    edit_json(llama / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", bos_token=None)
    assert Encoder.from_pretrained(llama).tokenizer()(["a"]).ids[0] == BOS[0]


def test_gpt_neox_has_no_special_tokens_unless_told(llama: Path) -> None:
    edit_json(llama / "tokenizer_config.json", tokenizer_class="GPTNeoXTokenizer", backend=None)
    assert resolve(llama).special_tokens.fingerprint == {"add_bos_token": False, "add_eos_token": False}


@pytest.mark.parametrize(("eos", "times"), [(None, 1), (True, 1), (False, 0)])
def test_eos_stands_once_where_llm2vec_pools_it(llama: Path, eos: bool | None, times: int) -> None:
    edit_json(llama / "llm2vec_config.json", pooling_mode="eos_token")
    texts = Encoder.from_pretrained(llama, eos=eos).tokenizer()(SENTENCES)
    assert [texts.sequence(row).tolist().count(EOS[0]) for row in range(len(texts))] == [times] * len(texts)


@pytest.mark.parametrize("eos", [True, False])
def test_a_template_that_ends_otherwise_than_by_eos_is_left_alone(tmp_path: Path, eos: bool) -> None:
    """As in Qwen3-Embedding: sequences end with <|endoftext|>, but its EOS token is <|im_end|>."""
    folder = save_decoder(tmp_path / "model", "qwen3", bos=False, eos=True)
    edit_json(folder / "tokenizer_config.json", eos_token="<mask>")
    with pytest.raises(UsageError, match="ends its sequences with '</s>', which is not its EOS token '<mask>'"):
        Encoder.from_pretrained(folder, eos=eos)
    assert Encoder.from_pretrained(folder).tokenizer()(["a"]).ids[-1] == EOS[0]


def test_a_vocabulary_without_the_letter_a(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "model", "llama", eos=True)
    tokens = {"<s>": 0, "</s>": 1, "C": 2, "G": 3, "T": 4}
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] = {"type": "BPE", "vocab": tokens, "merges": []}
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in tokens]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    edit_json(folder / "tokenizer_config.json", mask_token=None)
    assert Encoder.from_pretrained(folder).tokenizer()(["GC"]).ids.tolist() == [0, 3, 2, 1]


def test_a_special_token_that_is_written_out(llama: Path) -> None:
    edit_json(llama / "tokenizer_config.json", eos_token={"content": "</s>", "__type": "AddedToken", "special": True})
    assert Encoder.from_pretrained(llama, eos=True).tokenizer()(["a"]).ids[-1] == EOS[0]


@pytest.fixture
def sentencepiece_alone(tmp_path: Path) -> Path:
    """A model whose tokenizer is only a SentencePiece file, as in the first releases of Llama and Mistral."""
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
