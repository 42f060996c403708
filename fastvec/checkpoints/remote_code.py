"""What a folder leaves to Python code of its own, told from its JSON alone: fastvec runs no code from a model.

Two such things change every vector: whether attention looks ahead, and which special tokens stand around a text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastvec.checkpoints.model_files import read_json_if_any, setting

# Classes that are a decoder of transformers with attention in both directions and nothing else.
# LlamaBidirectionalModel: the model card of nvidia/llama-nemotron-embed-1b-v2 and the code beside it. Not in the list:
# modeling_qwen.Qwen2Model of gte-Qwen2 and stella_en_1.5B_v5, bidirectional by gte-Qwen2's model card; but vLLM's list
# of supported models records that the code of the 1.5B one computes causally.
BIDIRECTIONAL_CLASSES = frozenset({"LlamaBidirectionalModel"})
# model types that such code adds, and the type of transformers whose weights and settings they have
MODEL_TYPES = {"llama_bidirec": "llama"}
# transformers 4's classes that put special tokens around a text by add_bos_token and add_eos_token, whatever
# tokenizer.json said, and what the two are where they are not stated; each has a twin named …Fast. transformers 5 drops
# both flags, on loading as on saving.
FLAG_READERS = {
    "CodeLlamaTokenizer": (True, False),
    "CohereTokenizer": (True, False),
    "GPTNeoXTokenizer": (False, False),
    "GemmaTokenizer": (True, False),
    "LlamaTokenizer": (True, False),
}
# the class that transformers 4 took for a model type where no file names one
CLASSES = {
    **dict.fromkeys(("llama", "mistral", "mixtral"), "LlamaTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    "gpt_neox": "GPTNeoXTokenizer",
}
FLAGS = ("add_bos_token", "add_eos_token")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialTokens:
    """Whether BOS begins and EOS ends every sequence; None leaves either to tokenizer.json.

    `alone`: no other special token stands there. `stated` are the flags that say so, of tokenizer_config.json or, where
    `asked`, of the user; of those in `unsettled` nobody can tell from the folder what was made of them.
    """

    bos: bool | None = None
    eos: bool | None = None
    alone: bool = False
    asked: bool = False
    stated: Mapping[str, bool] = field(default_factory=dict)
    unsettled: Mapping[str, bool] = field(default_factory=dict)

    def with_eos(self, eos: bool) -> "SpecialTokens":
        """What a user asks for instead."""
        unsettled = {flag: value for flag, value in self.unsettled.items() if flag != "add_eos_token"}
        stated = {**self.stated, "add_eos_token": eos}
        return replace(self, eos=eos, asked=True, stated=stated, unsettled=unsettled)

    @property
    def fingerprint(self) -> dict[str, bool]:
        values = {"add_bos_token": self.bos, "add_eos_token": self.eos}
        return {flag: value for flag, value in values.items() if value is not None}


def own_class(config: Mapping[str, Any]) -> str | None:
    """The class of its own that a model's config.json names for `AutoModel`, as `module.Class`."""
    auto_map = config.get("auto_map")
    code = auto_map.get("AutoModel") if isinstance(auto_map, dict) else None
    return code.rpartition("--")[2] if isinstance(code, str) else None


def is_bidirectional_class(name: str) -> bool:
    return name.rpartition(".")[2] in BIDIRECTIONAL_CLASSES


def special_tokens_of(folder: Path, config: Mapping[str, Any]) -> SpecialTokens:
    """What the tokenizer in `folder`, of a model with this config.json, puts around a text.

    Flags hold where the class they were written for read them: one of transformers 4's, or one of the folder's own.
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
    # With a backend transformers 5 wrote the file, and tokenizer.json holds what its template had become; without a
    # class nothing tells who wrote it.
    if (folder / "tokenizer.json").is_file() and ("backend" in settings or not named):
        return SpecialTokens(bos=bos, eos=eos, stated=stated)
    default_bos, default_eos = FLAG_READERS[name]
    return SpecialTokens(
        bos=default_bos if bos is None else bos, eos=default_eos if eos is None else eos, alone=True, stated=stated
    )
