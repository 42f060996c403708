import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from tokenizers import pre_tokenizers
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from fastvec.checkpoints.checkpoint import resolve
from fastvec.errors import ModelError
from fastvec.texts.from_files import PlainTokenizer, tokenizer_from_files
from fastvec.texts.from_transformers import tokenizer_from_transformers
from fastvec.texts.limits import translated_panics
from tests.helpers.checkpoints import copy, edit_json
from tests.helpers.tiny import SENTENCES, save_decoder

END = "<|endoftext|>"
TEXTS = [
    *SENTENCES,
    "",
    "<s> in a text",
    "  spaces ",
    f"an{END} end </s>",
    "a\u0301 \ufb01 don't\n\n12345\t ▁x",
    "<mask>",
]
ALPHABET = [chr(i) for i in range(97, 123)]
TOKENS = ["<pad>", "</s>", "<s>", "<unk>", "<mask>", "▁", *ALPHABET, "th", "▁th"]
VOCABULARY = {token: i for i, token in enumerate(TOKENS)}
MERGES: Any = [("t", "h"), ("▁", "th")]  # their stated type is str


def assert_same(found: PlainTokenizer, expected: PreTrainedTokenizerBase) -> None:
    own, other = (one.backend_tokenizer.encode_batch(TEXTS) for one in (found, expected))
    assert [(one.ids, one.offsets) for one in own] == [(one.ids, one.offsets) for one in other]
    for name in ("bos_token", "eos_token", "pad_token"):
        assert getattr(found, name) == getattr(expected, name)
        assert getattr(found, f"{name}_id") == getattr(expected, f"{name}_id")
    assert set(found.all_special_ids) == set(expected.all_special_ids)


@pytest.mark.parametrize("bos", [True, False])
def test_the_tokens_are_those_of_transformers(tmp_path: Path, bos: bool) -> None:
    checkpoint = resolve(save_decoder(tmp_path, "llama", bos=bos, eos=True))
    found = tokenizer_from_files(checkpoint)
    assert found is not None
    assert_same(found, tokenizer_from_transformers(checkpoint))


def saved(folder: Path, model_type: str, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save a decoder with `tokenizer`, as transformers 5 does."""
    save_decoder(folder, model_type)
    tokenizer.save_pretrained(folder)
    return folder


def as_transformers_4(folder: Path, **settings: Any) -> Path:
    """Rewrite tokenizer_config.json with the keys that transformers 4 wrote, and the files that it wrote beside it."""
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    decoder = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in tokens}
    usual = {"clean_up_tokenization_spaces": False, "model_max_length": 4096, "chat_template": "{{ messages }}"}
    config = {"added_tokens_decoder": decoder, **usual, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    by_content = {token["content"]: flags for token, flags in zip(tokens, decoder.values(), strict=True)}
    named = {
        key: by_content[value] for key, value in settings.items() if key.endswith("_token") and value in by_content
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    (folder / "added_tokens.json").write_text(json.dumps({token["content"]: token["id"] for token in tokens}))
    return folder


def qwen2(folder: Path) -> Path:
    vocab = {END: 0, **{letter: 1 + i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
    vocab |= {"th": len(vocab)}
    return saved(folder, "qwen3", Qwen2Tokenizer(vocab=vocab, merges=MERGES[:1]))


def qwen3_embedding(folder: Path) -> Path:
    """tokenizer.json ends every sequence; tokenizer_config.json states a flag that its class never read."""
    qwen2(folder)
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}]
    tokens = {END: {"id": END, "ids": [0], "tokens": [END]}}
    pair = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}
    edit_json(folder / "tokenizer.json", post_processor=template)
    return as_transformers_4(
        folder,
        tokenizer_class="Qwen2Tokenizer",
        add_bos_token=False,
        add_prefix_space=False,
        additional_special_tokens=[END],
        bos_token=None,
        eos_token=END,
        errors="replace",
        pad_token=END,
        split_special_tokens=False,
        unk_token=None,
    )


def gemma(folder: Path) -> Path:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    return saved(folder, "gemma3_text", GemmaTokenizer(vocab=VOCABULARY, merges=MERGES, **names))


def embedding_gemma(folder: Path) -> Path:
    return as_transformers_4(
        gemma(folder),
        tokenizer_class="GemmaTokenizer",
        add_bos_token=True,
        add_eos_token=True,
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={},
        mask_token="<mask>",
        pad_token="<pad>",
        sp_model_kwargs=None,
        spaces_between_special_tokens=False,
        unk_token="<unk>",
        use_default_system_prompt=False,
    )


def llama(folder: Path) -> Path:
    return saved(folder, "llama", LlamaTokenizer(vocab=VOCABULARY, merges=MERGES))


def e5_mistral(folder: Path) -> Path:
    """tokenizer.json is of an earlier form than what LlamaTokenizer builds, and transformers loads it as it is."""
    llama(folder)
    edit_json(folder / "config.json", model_type="mistral")
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    both = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]}
    edit_json(folder / "tokenizer.json", normalizer=both, pre_tokenizer=None)
    return as_transformers_4(
        folder,
        tokenizer_class="LlamaTokenizer",
        add_bos_token=True,
        add_eos_token=False,
        additional_special_tokens=[],
        bos_token="<s>",
        eos_token="</s>",
        legacy=True,
        pad_token="</s>",
        sp_model_kwargs={},
        unk_token="<unk>",
        use_default_system_prompt=False,
    )


def llama3(folder: Path) -> Path:
    save_decoder(folder, "llama")
    return as_transformers_4(
        folder,
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<s>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )


def by_sentence_transformers(folder: Path) -> Path:
    save_decoder(folder / "decoder", "llama")
    SentenceTransformer(str(folder / "decoder"), device="cpu").save(str(folder / "saved"))
    return folder / "saved"


PUBLISHED = {
    function.__name__: function
    for function in (
        qwen2,
        qwen3_embedding,
        gemma,
        embedding_gemma,
        llama,
        e5_mistral,
        llama3,
        by_sentence_transformers,
    )
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_and_saved_folders_load_as_transformers_loads_them(tmp_path: Path, name: str) -> None:
    folder = PUBLISHED[name](tmp_path)
    checkpoint = resolve(folder)
    found = tokenizer_from_files(checkpoint)
    assert found is not None
    assert_same(found, tokenizer_from_transformers(checkpoint))


def test_a_changed_file_is_left_to_transformers(tmp_path: Path) -> None:
    """Each change makes what transformers builds differ from tokenizer.json, or may."""
    folder = qwen3_embedding(tmp_path)
    copy(folder, tmp_path / "model")
    path, settings_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    content, settings = json.loads(path.read_text()), json.loads(settings_path.read_text())
    wrong_flags = {index: {**token, "rstrip": True} for index, token in settings["added_tokens_decoder"].items()}
    for change in (
        {"normalizer": None},
        {"pre_tokenizer": content["pre_tokenizer"]["pretokenizers"][1]},
        {"model": {**content["model"], "ignore_merges": True}},
        {"model": {**content["model"], "fuse_unk": True}},
    ):
        path.write_text(json.dumps({**content, **change}))
        assert tokenizer_from_files(resolve(folder)) is None, change
    path.write_text(json.dumps(content))
    for change in (
        {"tokenizer_class": "GPT2Tokenizer"},
        {"add_prefix_space": True},
        {"split_special_tokens": True},
        {"added_tokens_decoder": wrong_flags},
        {"additional_special_tokens": ["<other>"]},
        {"mask_token": "<other>"},
        {"eos_token": {"content": "<other>"}},
        {"added_tokens_decoder": ["<other>"]},
        {"added_tokens_decoder": {"0": END}},
        {"extra_special_tokens": 5},
    ):
        settings_path.write_text(json.dumps({**settings, **change}))
        assert tokenizer_from_files(resolve(folder)) is None, change
    settings_path.write_text(json.dumps(settings))
    assert tokenizer_from_files(resolve(folder)) is not None
    for added in ({END: 7}, {"th": content["model"]["vocab"]["th"]}):
        (folder / "added_tokens.json").write_text(json.dumps(added))
        assert tokenizer_from_files(resolve(folder)) is None, added
    (folder / "added_tokens.json").unlink()
    edit_json(folder / "config.json", model_type=None)
    assert tokenizer_from_files(replace(resolve(tmp_path / "model"), tokenizer=folder)) is None


def test_the_files_of_transformers_4_take_effect_as_there(tmp_path: Path) -> None:
    """special_tokens_map.json overrides tokenizer_config.json, unless that has an added_tokens_decoder."""
    folder = qwen3_embedding(tmp_path)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<other>"}))
    assert tokenizer_from_files(resolve(folder)) is not None
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder=None)
    assert tokenizer_from_files(resolve(folder)) is None


def test_a_qwen2_is_built_whatever_class_it_names(tmp_path: Path) -> None:
    folder = llama3(tmp_path)
    assert tokenizer_from_files(resolve(folder)) is not None
    edit_json(folder / "config.json", model_type="qwen2")
    assert tokenizer_from_files(resolve(folder)) is None


@pytest.mark.parametrize(
    "settings",
    [{"tokenizer_class": None}, {"pad_token": "<other>"}, {"pad_token": "a"}, {"split_special_tokens": True}],
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


class PanicException(BaseException):
    """As the tokenizers library raises it."""


def test_a_panic_is_the_tokenizers_fault_unless_memory_ran_out() -> None:
    with pytest.raises(ModelError, match="the model's tokenizer failed on a text"), translated_panics():
        raise PanicException("called `Result::unwrap()` on an `Err` value: RuntimeError(StackLimit)")
    with pytest.raises(PanicException), translated_panics():
        raise PanicException("The global thread pool has not been initialized.: ThreadPoolBuildError")
