"""Checkpoint folders for the tests, written as the original tools write them."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from tests.helpers.tiny import SENTENCES

# for tiny decoders: two layers of 64 dimensions, hidden states near 1, tens of roundings of 6e-8 each
FLOAT32_ROUNDING = 1e-5
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys in a JSON file, creating it if needed. A value of None removes the key."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def add_tokens(folder: Path, *contents: str, special: bool) -> None:
    """Add tokens to the tokenizer that the model has no embeddings for."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    size = max(token["id"] for token in content["added_tokens"]) + len(content["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    content["added_tokens"] += [{"id": size + i, "content": text, **flags} for i, text in enumerate(contents)]
    path.write_text(json.dumps(content))


def break_last_token(folder: Path, text: str) -> Path:
    """Make the embedding of the last token of `text` NaN, so that no text that contains it has a vector."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.embed_tokens.weight[tokenizer(text)["input_ids"][-1]] = torch.nan
    model.save_pretrained(folder)
    return folder


def save_adapter(base: Path, target: Path, *, headed: bool = True, seed: int = 1, **settings: Any) -> Path:
    """Save a LoRA adapter for `base`, made on the model with its LM head or, as LLM2Vec does, without it."""
    model = (AutoModelForCausalLM if headed else AutoModel).from_pretrained(base)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **settings}
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM" if headed else None, **settings))
    torch.manual_seed(seed)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:  # initialized with zeros, which would change nothing
            torch.nn.init.normal_(parameter, 0, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about which layers it saves
        tuned.save_pretrained(target)
    return target


def with_adapter(model: torch.nn.Module, adapter: Path) -> torch.nn.Module:
    """Return `model` with an unmerged adapter, computed by peft itself."""
    tuned: torch.nn.Module = PeftModel.from_pretrained(model, adapter)
    return tuned.eval()


def save_to_hub_cache(folder: Path, cache: Path, repository: str = "org/tiny", *, kind: str = "models") -> Path:
    """Copy `folder` into `cache` as the hub's client stores a download of `repository`; return the snapshot."""
    root = cache / f"{kind}--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        # small files are named by their git hash of 40 characters
        blob = root / "blobs" / (digest if file.suffix == ".safetensors" else digest[:40])
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


def use_hub_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the hub's client use `cache`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def last_token_folder(folder: Path) -> Path:
    """Give `folder` the layout of e5-mistral and similar models: sentence-transformers modules, last-token pooling."""
    (folder / "1_Pooling").mkdir()
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    edit_json(folder / "1_Pooling" / "config.json", word_embedding_dimension=64, pooling_mode_lasttoken=True)
    return folder


def last_states(folder: Path, before: list[int], after: list[int], *, causal: bool = True) -> npt.NDArray[np.float32]:
    """Return the last hidden state of each sentence between the given token ids, by transformers, one at a time."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    model.config.is_causal = causal
    tokenizer = AutoTokenizer.from_pretrained(folder)
    states = []
    for text in SENTENCES:
        ids = [*before, *tokenizer(text, add_special_tokens=False).input_ids, *after]
        with torch.no_grad():
            states.append(model(torch.tensor([ids])).last_hidden_state[0, -1].numpy())
    return np.stack(states)
