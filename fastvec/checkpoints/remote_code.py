"""Detects, from a folder's JSON alone, what it leaves to its own Python code: fastvec never runs code from a model.

Two such decisions affect every vector: whether attention is bidirectional, and which special tokens surround a text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastvec.checkpoints.model_files import read_json_if_any, setting

# Classes that change a decoder of transformers only by making its attention bidirectional.
# Source for LlamaBidirectionalModel: the model card and the code in nvidia/llama-nemotron-embed-1b-v2. Not listed:
# modeling_qwen.Qwen2Model of gte-Qwen2 and stella_en_1.5B_v5. gte-Qwen2's model card calls it bidirectional, but vLLM's
# list of supported models says that the code of the 1.5B model computes causal attention.
BIDIRECTIONAL_CLASSES = frozenset({"LlamaBidirectionalModel"})
# model types that such code adds: the transformers type with the same weights and settings
MODEL_TYPES = {"llama_bidirec": "llama"}
# The tokenizer classes of transformers 4 that add special tokens according to add_bos_token and add_eos_token, whatever
# tokenizer.json says, with the defaults of the two flags. Each class also exists as …Fast. transformers 5 drops both
# flags, both on loading and on saving.
FLAG_READERS = {
    "CodeLlamaTokenizer": (True, False),
    "CohereTokenizer": (True, False),
    "GPTNeoXTokenizer": (False, False),
    "GemmaTokenizer": (True, False),
    "LlamaTokenizer": (True, False),
}
# the tokenizer class that transformers 4 uses for a model type if no file names one
CLASSES = {
    **dict.fromkeys(("llama", "mistral", "mixtral"), "LlamaTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    "gpt_neox": "GPTNeoXTokenizer",
}
FLAGS = ("add_bos_token", "add_eos_token")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialTokens:
    """Whether BOS begins and EOS ends every sequence; None leaves the token to tokenizer.json.

    `alone` means that no other special tokens surround a text. `stated` contains the flags set in tokenizer_config.json
    and, if `asked`, by the user. `unsettled` contains flags whose effect in training cannot be told from the folder.
    """

    bos: bool | None = None
    eos: bool | None = None
    alone: bool = False
    asked: bool = False
    stated: Mapping[str, bool] = field(default_factory=dict)
    unsettled: Mapping[str, bool] = field(default_factory=dict)

    def with_eos(self, eos: bool) -> "SpecialTokens":
        """Return these rules with the user's choice of EOS instead."""
        unsettled = {flag: value for flag, value in self.unsettled.items() if flag != "add_eos_token"}
        stated = {**self.stated, "add_eos_token": eos}
        return replace(self, eos=eos, asked=True, stated=stated, unsettled=unsettled)

    @property
    def fingerprint(self) -> dict[str, bool]:
        values = {"add_bos_token": self.bos, "add_eos_token": self.eos}
        return {flag: value for flag, value in values.items() if value is not None}


def remote_code_class(config: Mapping[str, Any]) -> str | None:
    """Return the class in the model's own code that config.json names for `AutoModel`, as `module.Class`, if any."""
    auto_map = config.get("auto_map")
    code = auto_map.get("AutoModel") if isinstance(auto_map, dict) else None
    return code.rpartition("--")[2] if isinstance(code, str) else None


def is_bidirectional_class(name: str) -> bool:
    return name.rpartition(".")[2] in BIDIRECTIONAL_CLASSES


def special_tokens_of(folder: Path, config: Mapping[str, Any]) -> SpecialTokens:
    """Return the special tokens that the tokenizer in `folder`, of a model with this config.json, adds to a text.

    Flags apply if the tokenizer class they were written for reads them: one of transformers 4, or the folder's own.
    """
    path = folder / "tokenizer_config.json"
    settings = read_json_if_any(path)
    stated = {flag: value for flag in FLAGS if (value := setting(settings, flag, bool, path)) is not None}
    bos, eos = (stated.get(flag) for flag in FLAGS)
    auto_map = settings.get("auto_map")
    if isinstance(auto_map, dict) and auto_map.get("AutoTokenizer") is not None:
        return SpecialTokens(bos=bos, eos=eos, stated=stated)
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    name = str(named or CLASSES.get(str(config.get("model_type")))).removesuffix("Fast")
    if name not in FLAG_READERS:
        return SpecialTokens(unsettled=stated)
    # A "backend" shows that transformers 5 wrote the file: tokenizer.json then contains the resulting template.
    # Without a class, nothing shows which version wrote it.
    if (folder / "tokenizer.json").is_file() and ("backend" in settings or not named):
        return SpecialTokens(bos=bos, eos=eos, stated=stated)
    default_bos, default_eos = FLAG_READERS[name]
    return SpecialTokens(
        bos=default_bos if bos is None else bos, eos=default_eos if eos is None else eos, alone=True, stated=stated
    )
