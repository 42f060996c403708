"""What a folder leaves to Python code of its own, told from its JSON alone: fastvec runs no code from a model.

Two such things change every vector: whether attention looks ahead, and which special tokens stand around a text.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastvec.model_files import read_json_if_any, setting

# Classes that are a decoder of transformers with attention in both directions and nothing else.
# LlamaBidirectionalModel: the model card of nvidia/llama-nemotron-embed-1b-v2 and the code beside it. Not in the list:
# modeling_qwen.Qwen2Model of gte-Qwen2 and stella_en_1.5B_v5, bidirectional by gte-Qwen2's model card; but vLLM's list
# of supported models records that the code of the 1.5B one computes causally.
BIDIRECTIONAL_CLASSES = frozenset({"LlamaBidirectionalModel"})
# model types that such code adds, and the type of transformers whose weights and settings they have
MODEL_TYPES = {"llama_bidirec": "llama"}
# transformers 4's classes that put special tokens around a text by add_bos_token and add_eos_token, whatever
# tokenizer.json said; each has a twin named …Fast. transformers 5 drops both flags, on loading as on saving.
FLAG_READERS = ("CodeLlamaTokenizer", "CohereTokenizer", "GPTNeoXTokenizer", "GemmaTokenizer", "LlamaTokenizer")
FLAGS = ("add_bos_token", "add_eos_token")


def own_class(config: Mapping[str, Any]) -> str | None:
    """The class of its own that a model's config.json names for `AutoModel`, as `module.Class`."""
    auto_map = config.get("auto_map")
    code = auto_map.get("AutoModel") if isinstance(auto_map, dict) else None
    return code.rpartition("--")[2] if isinstance(code, str) else None


def is_bidirectional_class(name: str) -> bool:
    return name.rpartition(".")[2] in BIDIRECTIONAL_CLASSES


def special_token_flags(folder: Path) -> tuple[dict[str, bool], dict[str, bool]]:
    """`add_bos_token` and `add_eos_token` where tokenizer_config.json states them: those that hold, those unsettled.

    They hold where the class named there read them when the file was written, one of transformers 4's or one of the
    folder's own code. What another class made of them, nobody can tell from the folder.
    """
    path = folder / "tokenizer_config.json"
    config = read_json_if_any(path)
    stated = {flag: value for flag in FLAGS if (value := setting(config, flag, bool, path)) is not None}
    name = str(config.get("tokenizer_class")).removesuffix("Fast")
    if name in FLAG_READERS and not (folder / "tokenizer.json").is_file():
        stated = {"add_bos_token": True, **stated}  # their default, which transformers 5 has not
    auto_map = config.get("auto_map")
    own = isinstance(auto_map, dict) and auto_map.get("AutoTokenizer") is not None
    return (stated, {}) if own or name in FLAG_READERS else ({}, stated)
