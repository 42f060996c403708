"""Refuses a config.json whose sizes cannot be those of the weights beside it, before anything of these sizes is made.

A model is built from config.json before its weights are compared with it. So a single number could otherwise take all
memory, or build layers without end.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastvec.checkpoints.model_files import count, setting
from fastvec.errors import ModelError

AT_LEAST_ONE = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_attention_heads", "n_head", "n_heads")
LAYER_COUNT = re.compile(r"(n|num)_(\w+_)?layers?")
SIZE = re.compile(r"(\w+_)?(size|dims?|heads|experts|rank|embd|inner|groups?)|d_\w+|dff")

MOST_LABELS = 1_000_000  # transformers gives each a name


def require_sizes(config: Mapping[str, Any], path: Path, weights: Mapping[Path, int]) -> None:
    """Raise ModelError if `config`, read from `path`, has no layers or heads, or sizes beyond the `weights`.

    These are files with their numbers of tensors: at least one tensor for each layer, and one byte for each unit of any
    other size.
    """
    tensors = sum(weights.values())
    stored = sum(file.stat().st_size for file in weights)
    for part in (config, setting(config, "text_config", dict, path, {})):
        for name in AT_LEAST_ONE:
            count(part, name, path)
        for name, value in _numbers(part):
            if name == "num_labels" and value > MOST_LABELS:
                raise ModelError(f"{path} has num_labels {value:.9g}, at most {MOST_LABELS:,} are expected")
            if LAYER_COUNT.fullmatch(name) and value > tensors:
                raise ModelError(
                    f"{path} has {name} {value:.9g}, but the weights have {tensors} tensors: it is damaged"
                )
            if SIZE.fullmatch(name) and value > stored:
                raise ModelError(f"{path} has {name} {value:.9g}, but the weights have {stored} bytes: it is damaged")


def width_of(config: Mapping[str, Any], path: Path) -> int:
    """Return the width of the hidden states; a model with several parts states it in `text_config`."""
    for part in (config, setting(config, "text_config", dict, path, {})):
        # word_embed_proj_dim: an OPT model may project its last hidden states back to this width
        for name in ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model"):
            if size := count(part, name, path):
                return size
    raise ModelError(f"{path} has no hidden_size: give the folder of a decoder model")


def _numbers(part: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    for name, value in part.items():
        for number in value if isinstance(value, list) else (value,):
            if isinstance(number, int | float):
                yield name, number
