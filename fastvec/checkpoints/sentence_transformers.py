"""Reads a sentence-transformers folder: `modules.json` lists a Transformer, a Pooling, and operations on the vector.

Nothing that the folder names is imported: module types must be among four known names, and activations among those
in ACTIVATIONS. A folder is data, not code.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, get_args

from fastvec.checkpoints.model_files import (
    check_safetensors,
    count,
    length,
    read_json,
    read_json_if_any,
    read_json_list,
    setting,
)
from fastvec.errors import ModelError, quoted

Pooling = Literal["mean", "weighted_mean", "last", "first"]
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]

# A class has several import paths: sentence_transformers.models.Pooling and, since version 5.4, two others.
MODULE = re.compile(
    r"sentence_transformers\.(?:models|base\.modules|sentence_transformer\.modules)\.(?:\w+\.)?"
    r"(Transformer|Pooling|Dense|Normalize)"
)
POOLINGS: dict[str, Pooling] = {"mean": "mean", "weightedmean": "weighted_mean", "lasttoken": "last", "cls": "first"}
# before version 5.4, each mode had a flag
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
LONGEST_PATH = 255
# Arguments with which sentence-transformers loads the parts of a Transformer, by the names that versions gave them, and
# those among them that change no vector, or that fastvec decides itself.
OF_TOKENIZER = ("tokenizer_args", "processor_kwargs")
LOADING = ("model_args", "model_kwargs", *OF_TOKENIZER, "config_args", "config_kwargs")
HARMLESS = {
    "attn_implementation",
    "cache_dir",
    "clean_up_tokenization_spaces",
    "device_map",
    "dtype",
    "local_files_only",
    "low_cpu_mem_usage",
    "padding_side",
    "revision",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "use_cache",
    "use_fast",
    "use_safetensors",
}
ONE_LENGTH = ("query_length", "document_length", "query_expansion")
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseLayer:
    """A linear layer applied to the pooled vector, and its activation: the name of a class in `torch.nn`."""

    weights: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SentenceFolder:
    """The folder's settings; None if the folder does not state one."""

    transformer: Path
    pooling: Pooling
    include_prompt: bool
    dense: tuple[DenseLayer, ...]
    normalize: bool
    max_length: int | None
    lower_case: bool
    dims: int | None
    default_prompt_name: str | None
    similarity: Similarity
    prompts: Mapping[str, str] = field(default_factory=dict)


def read_sentence_folder(folder: Path) -> SentenceFolder:
    """Read `modules.json` and the small files it refers to.

    Raises ModelError for a module, a pooling mode or an order of modules that fastvec does not reproduce.
    """
    modules = read_json_list(folder / "modules.json")
    kinds = [_kind(module, folder) for module in modules]
    paths = [_path(module, folder) for module in modules]
    order = " ".join(kinds)
    if not re.fullmatch(r"Transformer Pooling( Dense)*( Normalize)*", order):
        raise ModelError(f"{folder} has modules {order}: expected Transformer, Pooling, Dense and Normalize in order")
    _refuse_other_keys(paths[2:])
    settings_path = folder / "config_sentence_transformers.json"
    settings = read_json_if_any(settings_path)
    if settings.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise ModelError(
            f"{folder} is a {quoted(settings['model_type'])}: expected a SentenceTransformer, one vector per text"
        )
    pooling, include_prompt = _pooling(paths[1] / "config.json")
    max_length, lower_case = _transformer(paths[0])
    return SentenceFolder(
        transformer=paths[0],
        pooling=pooling,
        include_prompt=include_prompt,
        dense=tuple(read_dense(path) for kind, path in zip(kinds, paths, strict=True) if kind == "Dense"),
        normalize="Normalize" in kinds,
        max_length=max_length,
        lower_case=lower_case,
        dims=count(settings, "truncate_dim", settings_path),
        default_prompt_name=setting(settings, "default_prompt_name", str, settings_path),
        similarity=_similarity(settings),
        prompts=read_prompts(settings, settings_path),
    )


def _kind(module: dict[str, Any], folder: Path) -> str:
    match = MODULE.fullmatch(str(module.get("type")))
    if match is None:
        raise ModelError(
            f"{folder} has a module of type {quoted(module.get('type'))}: fastvec supports only Transformer, "
            "Pooling, Dense and Normalize, and never runs code from a model"
        )
    return match[1]


def _path(module: dict[str, Any], folder: Path) -> Path:
    path = module.get("path")
    windows = PureWindowsPath(str(path))  # splits at both / and \, and recognizes drives
    if not isinstance(path, str) or windows.anchor or ".." in windows.parts or len(path) > LONGEST_PATH:
        raise ModelError(f"{folder} has a module at {quoted(path)}: expected a subfolder of it")
    return folder / path


def _transformer(folder: Path) -> tuple[int | None, bool]:
    """Return the maximum length in tokens, and whether texts are lower-cased."""
    path = folder / "sentence_bert_config.json"
    settings = read_json_if_any(path)
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise ModelError(f"{path} asks for the task {quoted(task)}: expected feature-extraction")
    if "message" in setting(settings, "modality_config", dict, path, {}):
        raise ModelError(f"{path} applies a chat template (modality message), which is not supported here")
    for key in (*ONE_LENGTH, "tokenizer_name_or_path"):
        if settings.get(key) is not None:
            raise _other_vectors(path, key, settings[key])
    longest = length(settings, "max_seq_length", path)
    for key in LOADING:
        arguments: dict[str, Any] = setting(settings, key, dict, path, {})
        known = HARMLESS
        if key in OF_TOKENIZER:
            known, longest = HARMLESS | {"model_max_length"}, length(arguments, "model_max_length", path) or longest
        if other := sorted(set(arguments) - known):
            raise _other_vectors(path, f"{other[0]} in {key}", arguments[other[0]])
    return _processed(settings, path) or longest, setting(settings, "do_lower_case", bool, path, False)


def _processed(settings: dict[str, Any], path: Path) -> int | None:
    """Return the maximum length among the arguments for calling the tokenizer; raise ModelError for other arguments."""
    arguments: dict[str, Any] = setting(settings, "processing_kwargs", dict, path, {})
    text: dict[str, Any] = setting(arguments, "text", dict, path, {})
    for key, value in (*text.items(), ("common", arguments.get("common"))):
        if not (value in (None, {}) or key in ("max_length", "padding") or (key, value) == ("truncation", True)):
            raise _other_vectors(path, f"{key} in processing_kwargs", value)
    return length(text, "max_length", path)


def _other_vectors(path: Path, key: str, value: object) -> ModelError:
    return ModelError(
        f"{path} sets {key} to {quoted(value)}, which fastvec does not apply: its vectors would differ from those of "
        "sentence-transformers; take it out in a copy of the folder, or use sentence-transformers"
    )


def _pooling(path: Path) -> tuple[Pooling, bool]:
    settings = read_json(path)
    mode = settings.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else mode
    if modes is None:
        modes = [name for flag, name in POOLING_FLAGS.items() if settings.get(flag)] or ["mean"]
    if not isinstance(modes, list) or len(modes) != 1 or str(modes[0]) not in POOLINGS:
        raise ModelError(f"{path} has pooling mode {quoted(modes)}: expected exactly one of {', '.join(POOLINGS)}")
    return POOLINGS[str(modes[0])], setting(settings, "include_prompt", bool, path, True)


def _similarity(settings: dict[str, Any]) -> Similarity:
    """Return the function that the folder names; sentence-transformers ignores names that are not among the four."""
    named = settings.get("similarity_fn_name")
    return next((name for name in get_args(Similarity) if name == named), "cosine")


def read_dense(folder: Path) -> DenseLayer:
    """Read a Dense module; raises ModelError for a residual or for an activation that fastvec does not support."""
    path = folder / "config.json"
    settings = read_json(path)
    # sentence-transformers applies Tanh if the file names no activation
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = activation.rpartition(".")[2]
    if not activation.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise ModelError(
            f"{path} has the activation {quoted(activation)}: expected torch.nn's {', '.join(ACTIVATIONS)}"
        )
    if settings.get("use_residual"):
        raise ModelError(f"{path} adds a residual to a Dense layer: fastvec does not support this")
    weights = folder / "model.safetensors"
    check_safetensors(weights)
    return DenseLayer(
        weights=weights,
        in_features=count(settings, "in_features", path) or 0,
        out_features=count(settings, "out_features", path) or 0,
        bias=setting(settings, "bias", bool, path, True),
        activation=name,
    )


def _refuse_other_keys(folders: list[Path]) -> None:
    """Raise ModelError if a Dense or Normalize module reads or writes other features than the pooled vector."""
    for folder in folders:
        path = folder / "config.json"
        settings = read_json_if_any(path)
        for key in ("module_input_name", "module_output_name"):
            if settings.get(key) not in (None, "sentence_embedding"):
                raise ModelError(f"{path} sets {key} to {quoted(settings[key])}: expected sentence_embedding")


def read_prompts(settings: dict[str, Any], path: Path) -> Mapping[str, str]:
    """Return the prompts in `settings`, read from `path`, by name; raises ModelError if one is not a string."""
    prompts: dict[str, Any] = setting(settings, "prompts", dict, path, {})
    if not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise ModelError(f"{path} has a prompt that is not a string")
    return prompts
