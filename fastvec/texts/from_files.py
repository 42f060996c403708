"""Loads tokenizers directly from tokenizer.json, without transformers, whose import takes seconds.

transformers 5 loads some tokenizer classes as tokenizer.json defines them, and builds others from the vocabulary alone.
This module covers folders for which both give the same tokenizer: of Qwen3-Embedding, EmbeddingGemma, e5-mistral and
Llama 3, and those that transformers 5 and sentence-transformers save.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.checkpoints.model_files import read_json_if_any
from fastvec.errors import ModelError
from fastvec.texts.limits import bound, require_charsmaps
from fastvec.texts.special_tokens import apply_rules

SPECIAL = ("bos_token", "eos_token", "pad_token", "mask_token", "unk_token")
ADDED = ("additional_special_tokens", "extra_special_tokens")
# Settings that do not change the ids of a text, or that fastvec sets itself.
IGNORED = {
    "add_bos_token",  # `special_tokens_of` settles both flags
    "add_eos_token",
    "add_prefix_space",  # of the pre-tokenizer, which is compared
    "backend",
    "chat_template",
    "clean_up_tokenization_spaces",
    "errors",
    "is_local",
    "legacy",  # of the pre-tokenizer, like add_prefix_space
    "local_files_only",
    "max_length",
    "model_input_names",
    "model_max_length",
    "pad_to_multiple_of",
    "pad_token_type_id",
    "padding",
    "padding_side",
    "processor_class",
    "sp_model_kwargs",
    "spaces_between_special_tokens",
    "stride",
    "tokenizer_class",
    "truncation",
    "truncation_side",
    "truncation_strategy",
    "use_default_system_prompt",
}
KNOWN = {*IGNORED, *SPECIAL, *ADDED, "added_tokens_decoder"}
AS_IT_IS = ("PreTrainedTokenizer", "TokenizersBackend")
# Classes that may build the tokenizer, and the tokens that they add if tokenizer_config.json names no others.
LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
GEMMA_TOKENS = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
BUILT: dict[str, dict[str, str]] = {
    "LlamaTokenizer": LLAMA_TOKENS,
    "GemmaTokenizer": GEMMA_TOKENS,
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}
# the model types for which transformers 5 loads tokenizer.json as it is, also if it names LlamaTokenizer
LLAMA_AS_IT_IS = ("mistral", "mixtral")
# Source: Qwen's tokenizer.json
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Parts(NamedTuple):
    """What a tokenizer of byte pair encoding consists of beside its vocabulary, comparable."""

    normalizer: bytes | None
    pre_tokenizer: bytes | None
    unk_token: str | None
    fuse_unk: bool
    byte_fallback: bool
    affixes: tuple[str, str] = ("", "")  # of words inside and at the end


class PlainTokenizer:
    """A tokenizer.json and the names of its special tokens: the subset of transformers' interface that fastvec uses."""

    def __init__(self, backend: Tokenizer, special: Mapping[str, str], added: set[str]) -> None:
        self.backend_tokenizer = backend
        self.bos_token, self.eos_token, self.pad_token = (special.get(name) for name in SPECIAL[:3])
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            None if token is None else backend.token_to_id(token)
            for token in (self.bos_token, self.eos_token, self.pad_token)
        )
        ids = (backend.token_to_id(token) for token in dict.fromkeys([*special.values(), *sorted(added)]))
        self.all_special_ids = [token for token in ids if token is not None]


def tokenizer_from_files(checkpoint: Checkpoint) -> PlainTokenizer | None:
    """Return the tokenizer of `checkpoint` if its files fully define it, or None if transformers may change it."""
    if checkpoint.chat_template or not (checkpoint.tokenizer / "tokenizer.json").is_file():
        return None
    require_charsmaps(checkpoint.tokenizer / "tokenizer.json")
    try:
        tokenizer = _read(checkpoint.tokenizer)
    except ModelError:
        raise
    except Exception:  # tokenizers raises nothing more specific; `from_transformers` then reports the error
        return None
    if tokenizer is not None:
        apply_rules(checkpoint, tokenizer)
    return tokenizer


def _read(folder: Path) -> PlainTokenizer | None:
    """Read the tokenizer; any exception means that the files are damaged."""
    settings = read_json_if_any(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:  # transformers ignores this file beside it
        settings |= read_json_if_any(folder / "special_tokens_map.json")
    model_type = read_json_if_any(folder / "config.json").get("model_type")
    name = str(settings.get("tokenizer_class")).removesuffix("Fast")
    if model_type == "qwen2":  # transformers ignores the class
        name = "Qwen2Tokenizer"
    if name not in AS_IT_IS and (name not in BUILT or model_type is None):
        return None
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if name not in AS_IT_IS and not (name == "LlamaTokenizer" and _llama_as_it_is(model_type, backend)):
        settings = {**BUILT[name], **settings}
        if _parts(backend) != _built(name, settings):
            return None
    unknown = {key for key, value in settings.items() if value not in (None, False) and key not in KNOWN}
    special = {key: _content(settings[key]) for key in SPECIAL if settings.get(key) is not None}
    added = set(_contents([settings.get(key) for key in ADDED]))
    held = backend.get_added_tokens_decoder()
    plain = {token.content for token in held.values() if token == AddedToken(token.content, special=True)}
    all_special = plain if name == "Qwen2Tokenizer" else {token.content for token in held.values() if token.special}
    padded = backend.padding is not None and "pad_token" not in special
    bound(backend, folder / "tokenizer.json")
    if unknown or padded or not {*special.values(), *added} <= all_special:
        return None
    ids = {token.content: index for index, token in held.items()}
    if not read_json_if_any(folder / "added_tokens.json").items() <= ids.items():
        return None
    decoder = settings.get("added_tokens_decoder")
    if decoder is not None and {int(index): AddedToken(**token) for index, token in decoder.items()} != held:
        return None
    return PlainTokenizer(backend, special, added)


def _llama_as_it_is(model_type: Any, backend: Tokenizer) -> bool:
    """Return whether transformers 5 loads tokenizer.json as it is, although it names LlamaTokenizer."""
    return model_type in LLAMA_AS_IT_IS or (
        model_type == "llama" and b"ByteLevel" in (_state(backend.pre_tokenizer) or b"")
    )


def _parts(backend: Tokenizer) -> Parts | None:
    model: Any = backend.model
    if type(model).__name__ != "BPE" or model.ignore_merges or model.dropout is not None:
        return None
    affixes = model.continuing_subword_prefix or "", model.end_of_word_suffix or ""
    normalizer, pre_tokenizer = _state(backend.normalizer), _state(backend.pre_tokenizer)
    return Parts(normalizer, pre_tokenizer, model.unk_token, model.fuse_unk, model.byte_fallback, affixes)


def _built(name: str, settings: Mapping[str, Any]) -> Parts | None:
    """Return what the class `name` of transformers 5 builds, whatever tokenizer.json contains beside the vocabulary."""
    words: pre_tokenizers.PreTokenizer
    if name == "GemmaTokenizer":
        words = pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)
        spaces = normalizers.Replace(" ", "▁")
        unk_token = _content(settings["unk_token"])
        return Parts(_state(spaces), _state(words), unk_token, fuse_unk=True, byte_fallback=True)
    if name == "LlamaTokenizer":
        if settings.get("legacy") or settings.get("add_prefix_space") is False:
            return None
        words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
        return Parts(None, _state(words), None, fuse_unk=True, byte_fallback=True)
    if settings.get("add_prefix_space"):
        return None
    split = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated", invert=False)
    words = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return Parts(_state(normalizers.NFC()), _state(words), None, fuse_unk=False, byte_fallback=False)


def _state(part: Any) -> bytes | None:
    return None if part is None else part.__getstate__()


def _content(token: Any) -> str:
    """Return the text of a token, which is a string, or an object with its flags, as transformers 4 wrote it."""
    return str(token.get("content") if isinstance(token, dict) else token)


def _contents(values: Any) -> Iterator[str]:
    """Yield the texts of tokens in lists or, as transformers 5 writes some, in objects by name."""
    for value in values:
        entries = value.values() if isinstance(value, dict) else value or ()
        yield from map(_content, entries)
