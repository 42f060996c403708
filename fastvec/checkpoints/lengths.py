"""How many tokens a checkpoint reads of a text, as its small files say."""

from pathlib import Path
from typing import Any

from fastvec.checkpoints.model_files import count, length, read_json_if_any
from fastvec.errors import ModelError

DEFAULT_MAX_LENGTH = 512
# Kinds of rotary positions that change for a whole batch as soon as one of its sequences is longer than a limit; `su`
# is an earlier name of longrope.
CHANGING = ("dynamic", "longrope", "su")


def positions_of(config: dict[str, Any], path: Path) -> int | None:
    """Return the number of positions in the `config.json` at `path`."""
    return count(config, "max_position_embeddings", path) or count(config, "n_positions", path)


def tokenizer_length(tokenizer: Path) -> int | None:
    """Return the maximum length in the tokenizer's settings, in tokens; None if they state none, or 1e30 for none."""
    path = tokenizer / "tokenizer_config.json"
    return length(read_json_if_any(path), "model_max_length", path)


def length_of_decoder(config: dict[str, Any], path: Path, tokenizer: Path) -> int:
    """Return the maximum length of a bare decoder: what its tokenizer states, as far as the positions reach."""
    stated = tokenizer_length(tokenizer) or DEFAULT_MAX_LENGTH
    return min(filter(None, (stated, positions_of(config, path), _unchanged(config, path))))


def length_of_sentences(stated: int | None, tokenizer: Path, positions: int | None) -> int:
    """Return the maximum length of a sentence-transformers folder: as stated, or as long as its decoder allows.

    Raises ModelError if a longer text loses its beginning.
    """
    path = tokenizer / "tokenizer_config.json"
    if read_json_if_any(path).get("truncation_side", "right") != "right":
        raise ModelError(
            f"{path} has a truncation_side other than right: fastvec keeps the beginning of a long text, not its end; "
            "change it in a copy of the folder, or use sentence-transformers"
        )
    return stated or min(filter(None, (tokenizer_length(tokenizer), positions)), default=DEFAULT_MAX_LENGTH)


def _unchanged(config: dict[str, Any], path: Path) -> int | None:
    """Return the length up to which rotary positions do not change, or None if they never do."""
    ropes = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(ropes, dict):
        return None
    name = "original_max_position_embeddings"
    limits = [
        count(rope, name, path) or count(config, name, path) or positions_of(config, path)
        for rope in (ropes, *ropes.values())  # some have one for each type of layer
        if isinstance(rope, dict) and (rope.get("rope_type") or rope.get("type")) in CHANGING
    ]
    return min(filter(None, limits), default=None)
