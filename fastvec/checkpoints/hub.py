"""Resolves a model's name to local folders.

A path is used as it is, a hub id is looked up in the hub's cache and downloaded if needed, and an adapter is followed
to its base model.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastvec.checkpoints import bundled
from fastvec.checkpoints.families import model_types
from fastvec.checkpoints.model_files import ADAPTER_SETTINGS, is_regular, read_json, setting
from fastvec.errors import ModelError, UsageError
from fastvec.system.hub import HubError, snapshot

# The files to download: no pickles and no Python. Some repositories contain a second copy of the weights (Mistral's
# consolidated.safetensors is 14 GB), or exports and training states; these are not downloaded.
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
UNWANTED = ("consolidated*", "original/*", "onnx/*", "openvino/*", "checkpoint-*", "runs/*")


def locate(name: str | Path, *, revision: str | None = None) -> tuple[Path, str | None]:
    """Return the folder of `name`, and its commit if it comes from the hub.

    `name` is a path, the bundled model's name or a hub id. Without a network, the hub's cache is used.
    Raises ModelError if there is no such folder or id, and UsageError if a `revision` is given for a local folder.
    """
    text = os.fspath(name)
    if "://" in text:  # the message does not repeat the URL, which may contain a password
        raise ModelError("a URL was given as a model: give a folder, or a hub id such as org/model")
    folder = _local(text)
    if folder is not None:
        if revision is not None:
            raise UsageError(f"revision {revision!r} was given, but {text} is a local folder: only hub ids have one")
        return folder, None
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or "\\" in text or text.count("/") > 1:
        raise ModelError(f"{text}: no such folder")
    return _download(text, revision)


def _local(text: str) -> Path | None:
    """Return the local folder that `text` names, if any; raises ModelError if it is a file or cannot be read."""
    try:
        folder = Path(text).expanduser()
        if text and folder.is_dir():
            if not os.access(folder, os.R_OK | os.X_OK):
                raise ModelError(f"{text} cannot be read as a model: permission denied")
            return folder
        is_file = folder.is_file()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~user for an unknown user
        raise ModelError(f"{text} cannot be read as a model: {getattr(error, 'strerror', error)}") from None
    if is_file:
        raise ModelError(f"{text} is a file: give the folder of a model with its config.json and *.safetensors")
    return bundled.bundled_model() if text == bundled.NAME else None


def _download(repository: str, revision: str | None) -> tuple[Path, str]:
    """Return the snapshot folder of a hub repository and its commit, which is the folder's name."""
    try:
        # its small files first: what is refused by its config.json need not be downloaded
        described = snapshot(repository, kind="model", revision=revision, wanted=["*.json"], unwanted=UNWANTED)
        if is_regular(config := described / "config.json"):
            model_types(read_json(config), config)
        folder = snapshot(repository, kind="model", revision=described.name, wanted=WANTED, unwanted=UNWANTED)
    except HubError as error:
        at = "" if revision is None else f" at revision {revision!r}"
        local = "no such folder, and " if error.absent else ""
        raise ModelError(f"{repository or 'an empty name'}{at}: {local}{error}") from None
    return folder, folder.name


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStack:
    """A base model and the adapters to merge into it."""

    base: Path
    adapters: tuple[Path, ...]  # in the order they are merged
    folders: tuple[Path, ...]  # from the given folder down to the base
    names: frozenset[str]  # the names of the model and of every model an adapter was trained on


def locate_stack(name: str, folder: Path, added: Sequence[Path] = ()) -> ModelStack:
    """Follow adapters from `folder` to the base model that has the weights; `added` adapters are merged last.

    A folder that contains both weights and an adapter is its own base, with the adapter to merge into it.
    Raises ModelError if an adapter names no base model, one that cannot be found, or one already in the chain.
    """
    names = {name, *filter(None, map(_base_model_name, added))}
    folders, adapters = [folder], list(added)
    while (folder / ADAPTER_SETTINGS).is_file():
        adapters.insert(0, folder)
        if any(folder.glob("model*.safetensors")):
            break
        base = _base_model_name(folder)
        if base is None:
            raise ModelError(f"{folder} is an adapter without a base model: give the base, and this as adapter")
        try:
            lower = locate(base)[0]
        except ModelError as error:
            raise ModelError(f"{folder} is an adapter, and its base model cannot be found: {error}") from None
        if lower in folders:
            raise ModelError(f"{folder} is an adapter that names itself as base: give the base, and this as adapter")
        folder = lower
        folders.append(folder)
        names.add(base)
    return ModelStack(base=folder, adapters=tuple(adapters), folders=tuple(folders), names=frozenset(names))


def _base_model_name(adapter: Path) -> str | None:
    path = adapter / ADAPTER_SETTINGS
    base: str | None = setting(read_json(path), "base_model_name_or_path", str, path)
    return base
