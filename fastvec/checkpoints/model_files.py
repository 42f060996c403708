"""Reads, checks and hashes the files of a model folder before anything is loaded. Does not import torch.

Only JSON, safetensors and tokenizer files are ever opened; pickles and Python files are refused or ignored.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastvec.errors import ModelError, one_line, quoted

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
OTHER_FORMATS = {".gguf": "GGUF", ".h5": "TensorFlow's HDF5", ".msgpack": "Flax's MessagePack", ".onnx": "ONNX"}
# What is parsed whole, by Python in up to 25 times as much memory. The largest known is the index of a model with
# 140,000 tensors (14 MB).
LARGEST_JSON = 32 << 20
LARGEST_TOKENIZER_FILE = 256 << 20  # the tokenizer.json of Gemma has 33 MB
LARGEST_HEADER = 32 << 20  # of a safetensors file: 300,000 tensors
# tokens of a sequence, whatever a file says; a table of rotary positions of that length has 1 GB
LONGEST = 1 << 20
HASHED_AT_ONCE = 4  # files
HASHED_ONCE = 16 << 20  # bytes of a file from which its hash is kept: a smaller one could change twice within a tick
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, *, most: int = LARGEST_JSON) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises ModelError if the file is missing, has more than `most` bytes, or contains no JSON object.
    """
    content = _parse(path, most)
    if not isinstance(content, dict):
        raise ModelError(f"{path} contains a JSON {type(content).__name__}, expected an object: the file is damaged")
    return content


def read_json_if_any(path: Path) -> dict[str, Any]:
    return read_json(path) if is_regular(path) else {}


def is_regular(path: Path) -> bool:
    """Return whether `path` is a regular file or a link to one; false for a path that no file can have."""
    return os.path.isfile(path)


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """Return the JSON list of objects in `path`; raises ModelError if the file is missing or contains none."""
    content = _parse(path, LARGEST_JSON)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise ModelError(f"{path} is not a JSON list of objects: the file is damaged")
    return content


def _parse(path: Path, most: int) -> Any:
    if not is_regular(path):
        raise ModelError(f"{path.parent} has no {path.name}: it is not a model folder, or it is incomplete")
    _require_size(path, most)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if SURROGATE.search(text):  # half of a character, which no tokenizer or path takes
            json.dumps(content, ensure_ascii=False).encode()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        problem = one_line(error)
        raise ModelError(f"{path} is not valid JSON ({problem}): the file is damaged, download it again") from None
    return content


def _require_size(path: Path, limit: int) -> None:
    if (size := path.stat().st_size) > limit:
        raise ModelError(f"{path} has {size:,} bytes, at most {limit:,} are expected: it is damaged")


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
        raise ModelError(f"{path} has {name} {quoted(value)}: the value has the wrong type")
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


def length(settings: Mapping[str, Any], name: str, path: Path) -> int | None:
    """Return `count(settings, name, path)` as the length of a sequence in tokens, at most LONGEST."""
    tokens = count(settings, name, path)
    return None if tokens is None else min(tokens, LONGEST)


def weight_files(folder: Path) -> dict[Path, int]:
    """Return the safetensors files of the model in `folder`, each with its number of tensors.

    They are one file, or the shards listed in its index.

    Raises ModelError if a file is missing or incomplete, if the index is damaged, or if the weights are in another
    format.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if is_regular(whole):
        files = [whole]
    elif is_regular(index):
        shards = list(setting(read_json(index), "weight_map", dict, index, {}).values())
        if not shards or any(not isinstance(shard, str) or Path(shard).name != shard for shard in shards):
            raise ModelError(f"{index} does not list the weight files: it is damaged")
        files = [folder / shard for shard in sorted(set(shards))]
    else:
        raise ModelError(f"{folder} has no model.safetensors: {_other_format(folder)}")
    return {file: check_safetensors(file) for file in files}


def check_safetensors(file: Path) -> int:
    """Return the number of tensors in `file`; raises ModelError unless it is a complete safetensors file."""
    from safetensors import SafetensorError, safe_open

    if not is_regular(file):
        raise ModelError(f"{file} is missing: {_other_format(file.parent)}")
    try:
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
        if header > LARGEST_HEADER:
            raise SafetensorError(f"a header of {header:,} bytes")
        with safe_open(file, framework="numpy") as tensors:
            return len(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is an incomplete or damaged safetensors file ({one_line(error)}): download it again"
        ) from None


def _other_format(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        if kind := OTHER_FORMATS.get(Path(name).suffix):
            return f"{name} is {kind}, which fastvec does not read; use the safetensors of the same model"
    for name in names:
        if Path(name).suffix in PICKLES:
            return f"{name} is a pickle, which could run any code; convert it to safetensors"
    return "fastvec reads only safetensors; convert the weights, or download a complete copy"


@functools.lru_cache(maxsize=256)
def _hash_once(path: Path, *version: int) -> str:
    """Return a file's SHA-256, in a process computed once for each version, as inode, size and time tell them apart."""
    return _hash_content(path, *version)


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """Return the tokenizer files in `folder`, or none if the folder contains no vocabulary."""
    files = tuple(folder / name for name in TOKENIZER_FILES if is_regular(folder / name))
    for file in files:
        _require_size(file, LARGEST_TOKENIZER_FILE)
    vocabularies = {"tokenizer.json", "tokenizer.model", "vocab.json"}
    return files if any(file.name in vocabularies for file in files) else ()


def hash_files(files: Iterable[tuple[str, Path]]) -> str:
    """Return the SHA-256 over names and contents. The hash is the same for a plain folder and for the hub's cache."""
    listed = list(files)
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:  # hashing runs without the GIL
        hashes = pool.map(_hash_file, [path for _, path in listed])
    lines = sorted(f"{name}\0{found}\n" for (name, _), found in zip(listed, hashes, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    target = path.resolve()
    # The hub's cache names a large file by its SHA-256, and snapshots link to it: the name saves reading gigabytes.
    if path.is_symlink() and target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name):
        return target.name
    stat = target.stat()
    content = _hash_once if stat.st_size >= HASHED_ONCE else _hash_content
    return content(target, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _hash_content(path: Path, *_version: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
