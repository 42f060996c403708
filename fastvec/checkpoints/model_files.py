"""Reads, checks and hashes the files of a model folder before anything is loaded. Does not import torch.

Only JSON, safetensors and tokenizer files are ever opened; pickles and Python files are refused or ignored.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastvec.errors import ModelError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
ADAPTER_SETTINGS = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; raises ModelError if the file is missing or contains no JSON object."""
    content = _parse(path)
    if not isinstance(content, dict):
        raise ModelError(f"{path} contains a JSON {type(content).__name__}, expected an object: the file is damaged")
    return content


def read_json_if_any(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """Return the JSON list of objects in `path`; raises ModelError if the file is missing or contains none."""
    content = _parse(path)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise ModelError(f"{path} is not a JSON list of objects: the file is damaged")
    return content


def _parse(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {path.name}: it is not a model folder, or it is incomplete")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}): the file is damaged, download it again") from None


def setting(
    settings: Mapping[str, Any], name: str, kind: type | tuple[type, ...], path: Path, default: Any = None
) -> Any:
    """Return `settings[name]`, or `default` if it is absent or null.

    Raises ModelError, naming `path`, if the value is not of type `kind`; a bool does not count as an int.
    """
    value = settings.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ModelError(f"{path} has {name} {value!r}: the value has the wrong type")
    return value


def count(settings: Mapping[str, Any], name: str, path: Path) -> int | None:
    """Return `settings[name]` as a number of tokens or dimensions.

    Returns None if it is absent or above 10^9, which stands for no limit (e.g. 1e30). Raises ModelError, naming `path`,
    for any other value that is not a number of at least 1.
    """
    value = setting(settings, name, (int, float), path)
    if value is None or value > 10**9:
        return None
    if not value >= 1:  # NaN included
        raise ModelError(f"{path} has {name} {value}: expected at least 1")
    return int(value)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of the model in `folder`: one file, or the shards listed in its index.

    Raises ModelError if a file is missing or incomplete, if the index is damaged, or if the weights are in another
    format.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        shards = set(setting(read_json(index), "weight_map", dict, index, {}).values())
        if not shards or any(not isinstance(shard, str) or Path(shard).name != shard for shard in shards):
            raise ModelError(f"{index} does not list the weight files: it is damaged")
        files = [folder / shard for shard in sorted(shards)]
    else:
        raise ModelError(f"{folder} has no model.safetensors: {_other_format(folder)}")
    for file in files:
        check_safetensors(file)
    return tuple(files)


def check_safetensors(file: Path) -> list[str]:
    """Return the names of the tensors in `file`; raises ModelError unless it is a complete safetensors file."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ModelError(f"{file} is missing: {_other_format(file.parent)}")
    try:
        with safe_open(file, framework="numpy") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is an incomplete or damaged safetensors file ({error}): download it again") from None


def _other_format(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        if name.endswith(".gguf"):
            return f"{name} is GGUF, which fastvec does not read; use the safetensors of the same model"
    for name in names:
        if Path(name).suffix in PICKLES:
            return f"{name} is a pickle, which could run any code; convert it to safetensors"
    return "fastvec reads only safetensors; convert the weights, or download a complete copy"


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """Return the tokenizer files in `folder`, or none if the folder contains no vocabulary."""
    files = tuple(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
    vocabularies = {"tokenizer.json", "tokenizer.model", "vocab.json"}
    return files if any(file.name in vocabularies for file in files) else ()


def hash_files(files: Iterable[tuple[str, Path]]) -> str:
    """Return the SHA-256 over names and contents. The hash is the same for a plain folder and for the hub's cache."""
    lines = sorted(f"{name}\0{_hash_file(path)}\n" for name, path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    target = path.resolve()
    # The hub's cache names a large file by its SHA-256, and snapshots link to it: the name saves reading gigabytes.
    if path.is_symlink() and target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name):
        return target.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
