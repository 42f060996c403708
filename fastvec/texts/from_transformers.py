"""Loads tokenizers with transformers: from every format that it reads, with chat templates, and able to be saved."""

from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.checkpoints.model_files import is_regular
from fastvec.errors import ModelError, one_line
from fastvec.system.libraries import quiet_libraries
from fastvec.texts.limits import bound, require_charsmaps, translated_panics
from fastvec.texts.special_tokens import apply_rules


def tokenizer_from_transformers(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """Load the tokenizer, and apply the checkpoint's rules on lower-casing and special tokens.

    Raises ModelError if transformers cannot load the files, or loads a tokenizer without a `tokenizers` backend.
    """
    folder = checkpoint.tokenizer
    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file():
        _require_sentencepiece(folder)
    if is_regular(folder / "tokenizer.json"):
        require_charsmaps(folder / "tokenizer.json")
    with quiet_libraries(), translated_panics():
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
            backend = getattr(tokenizer, "backend_tokenizer", None)
            if isinstance(backend, Tokenizer):
                bound(backend, folder)
                backend.encode("a")  # a class that does not fit the vocabulary fails here
            tokenizer.all_special_ids  # noqa: B018  # special tokens that have no id fail here
        except ModelError:
            raise
        except Exception as error:  # the tokenizers library raises nothing more specific
            own_code = "trust_remote_code" in str(error)
            reason = "it needs Python code from the model, which fastvec never runs" if own_code else one_line(error)
            raise ModelError(f"the tokenizer in {folder} cannot be loaded: {reason}") from None
    if not isinstance(backend, Tokenizer):
        raise ModelError(f"{folder} has no fast tokenizer: expected a tokenizer.json")
    apply_rules(checkpoint, tokenizer)
    return tokenizer


def _require_sentencepiece(folder: Path) -> None:
    """Raise ModelError if sentencepiece is missing; the error of transformers would name another package."""
    if find_spec("sentencepiece") is None:
        raise ModelError(
            f"the tokenizer in {folder} has only a tokenizer.model, and reading it needs sentencepiece: "
            "pip install 'fastvec[sentencepiece]'"
        )
