"""Loads tokenizers directly from tokenizer.json, without transformers, whose import takes seconds."""

from collections.abc import Mapping

from tokenizers import Tokenizer

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.checkpoints.model_files import read_json_if_any
from fastvec.texts.special_tokens import apply_rules

TOKENIZER_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
SPECIAL = ("bos_token", "eos_token", "pad_token", "mask_token", "unk_token")
TOKENIZER_IGNORED = {"backend", "clean_up_tokenization_spaces", "is_local", "local_files_only", "model_max_length"}


class PlainTokenizer:
    """A tokenizer.json and the names of its special tokens: the subset of transformers' interface that fastvec uses."""

    def __init__(self, backend: Tokenizer, special: Mapping[str, str]) -> None:
        self.backend_tokenizer = backend
        self.bos_token, self.eos_token, self.pad_token = (special.get(name) for name in SPECIAL[:3])
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            None if token is None else backend.token_to_id(token)
            for token in (self.bos_token, self.eos_token, self.pad_token)
        )
        ids = (backend.token_to_id(token) for token in dict.fromkeys(special.values()))
        self.all_special_ids = [token for token in ids if token is not None]


def tokenizer_from_files(checkpoint: Checkpoint) -> PlainTokenizer | None:
    """Return the tokenizer of `checkpoint` if its files fully define it, or None if transformers may change it.

    Classes in transformers can build a different tokenizer than tokenizer.json defines, and add tokens it lacks.
    """
    folder = checkpoint.tokenizer
    if checkpoint.chat_template or not (folder / "tokenizer.json").is_file():
        return None
    if any((folder / name).exists() for name in ("special_tokens_map.json", "added_tokens.json")):
        return None
    settings = {
        name: value
        for name, value in read_json_if_any(folder / "tokenizer_config.json").items()
        if name not in TOKENIZER_IGNORED
    }
    if settings.pop("tokenizer_class", None) not in TOKENIZER_CLASSES:
        return None
    special = {name: settings.pop(name) for name in SPECIAL if settings.get(name) is not None}
    if any(value is not None for value in settings.values()) or not all(isinstance(t, str) for t in special.values()):
        return None
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # tokenizers raises nothing more specific; `from_transformers` then reports the error
        return None
    held = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    if not set(special.values()) <= held:
        return None
    tokenizer = PlainTokenizer(backend, special)
    apply_rules(checkpoint, tokenizer)
    return tokenizer
