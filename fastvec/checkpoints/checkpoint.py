"""Reads a checkpoint's own description, in every supported layout.

The layouts are transformers, PEFT, LLM2Vec, sentence-transformers, and fastvec's own. This module reads only small
files and hashes the weights; it imports nothing that takes seconds to load. The defaults of `Checkpoint` are the rules
for a bare decoder; an LLM2Vec, sentence-transformers or fastvec folder overrides the rules it states.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from fastvec.checkpoints import bundled
from fastvec.checkpoints.families import model_types
from fastvec.checkpoints.hub import ModelStack, locate, locate_stack
from fastvec.checkpoints.lengths import DEFAULT_MAX_LENGTH, length_of_decoder, length_of_sentences, positions_of
from fastvec.checkpoints.model_files import (
    ADAPTER_SETTINGS,
    ADAPTER_WEIGHTS,
    check_safetensors,
    count,
    hash_files,
    length,
    read_json,
    read_json_if_any,
    setting,
    tokenizer_files,
    weight_files,
)
from fastvec.checkpoints.remote_code import (
    MODEL_TYPES,
    SpecialTokens,
    is_bidirectional_class,
    remote_code_class,
    special_tokens_of,
)
from fastvec.checkpoints.sentence_transformers import (
    DenseLayer,
    Pooling,
    SentenceFolder,
    Similarity,
    read_dense,
    read_prompts,
    read_sentence_folder,
)
from fastvec.checkpoints.sizes import require_sizes, width_of
from fastvec.errors import ModelError, UsageError, quoted

__all__ = ["Checkpoint", "Pooling", "resolve"]

RECORD = "fastvec.json"  # `fastvec adapt` writes it next to a model: how the model was made, and how to run it
RECORD_FORMAT = 1
DENSE_FOLDER = "2_Dense"  # next to the record, if the record says that there is a Dense layer
# how a text becomes a sequence, and which of its tokens are pooled; `Checkpoint` documents each rule
TEXT_RULES: Mapping[str, type] = {
    "text_max_length": int,
    "lower_case": bool,
    "strip": bool,
    "chat_template": bool,
    "append_eos": bool,
    "include_prompt": bool,
}
# The base models whose chat template LLM2Vec applies to its texts. LLM2Vec compares names, so checkpoints made from any
# other Instruct model (Llama 3.1, Qwen2.5) were trained without a template, and fastvec applies none to them.
CHAT_BASES = frozenset(
    {
        "Meta-Llama-3-8B-Instruct",
        "Mistral-7B-Instruct-v0.2",
        "Llama-2-7b-chat-hf",
        "gemma-2-9b-it",
        "Qwen2-1.5B-Instruct",
        "Qwen2-7B-Instruct",
    }
)
LLM2VEC_POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "weighted_mean": "weighted_mean",
    "eos_token": "last",
    "last_token": "last",
    "bos_token": "first",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A model, how texts are prepared for it, and how its hidden states become vectors."""

    name: str  # as given by the user
    revision: str | None  # the commit of a hub repository
    base: Path  # a folder with config.json and *.safetensors
    adapters: tuple[Path, ...]  # PEFT folders, merged in this order
    tokenizer: Path
    model_type: str
    hidden_size: int
    max_positions: int | None  # the number of positions in config.json
    max_length: int  # tokens of a whole sequence
    weights_hash: str
    tokenizer_hash: str
    added: tuple[str, ...] = ()  # the adapters given in addition to the model, as given by the user

    layout: Literal["transformers", "llm2vec", "sentence-transformers", "fastvec"] = "transformers"
    bidirectional: bool | None = True  # None: the folder's own code decides, and `bidirectional_reason` names the class
    bidirectional_reason: str = "the default for a bare decoder"
    pooling: Pooling = "mean"
    pooled_tokens: Literal["text", "all"] = "text"
    include_prompt: bool = False  # whether the prompt's tokens are pooled too
    dense: tuple[DenseLayer, ...] = ()
    normalize: bool = True
    dims: int | None = None  # the width of the vectors, if the checkpoint truncates them
    text_max_length: int | None = None  # tokens of the text alone
    lower_case: bool = False  # the tokenizer lower-cases texts; `load_tokenizer` configures it to
    strip: bool = False  # white space at the end of a text is removed
    chat_template: bool = False  # instruction and text form a user turn of the tokenizer's chat template
    append_eos: bool = False  # the tokenizer's EOS follows the text
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)  # around every text; overrides tokenizer.json
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: Similarity = "cosine"  # the function that compares vectors
    verbatim: bool = False  # an instruction is used unchanged, instead of stripped and followed by a space

    @property
    def vector_size(self) -> int:
        """The width of the vectors before they are truncated to `dims`."""
        return self.dense[-1].out_features if self.dense else self.hidden_size


def resolve(
    model: str | Path | None, *, adapters: Sequence[str | Path] = (), revision: str | None = None
) -> Checkpoint:
    """Find a model and read its rules.

    `model` is a folder or hub id; None means the bundled model. `adapters` are PEFT adapters to merge, in this order.
    Raises ModelError if a part is missing, damaged or not supported, and UsageError if a `revision` is given with a
    folder.
    """
    if not isinstance(model, str | Path | None):
        raise UsageError(f"the model is a {type(model).__name__}: give a folder or a hub id")
    name = bundled.NAME if model is None else str(model)
    folder, commit = locate(bundled.bundled_model() if model is None else model, revision=revision)
    sentence = read_sentence_folder(folder) if (folder / "modules.json").is_file() else None
    if isinstance(adapters, str | Path):
        adapters = (adapters,)
    added = [locate(adapter)[0] for adapter in adapters]
    stack = locate_stack(name, sentence.transformer if sentence else folder, added)
    record = _find_record(stack)
    dense = _recorded_dense(record) if record else sentence.dense if sentence else ()
    checkpoint = _bare_decoder(stack, name=name, revision=commit, dense=dense)
    checkpoint = replace(checkpoint, added=tuple(map(str, adapters)))
    if record:
        return _apply_record(checkpoint, record)
    return _apply_sentence_transformers(checkpoint, sentence) if sentence else _apply_llm2vec(checkpoint, stack)


def _find_record(stack: ModelStack) -> Path | None:
    """Return the record of the last adaptation, or None if LLM2Vec made the last one or there was none."""
    for place in (*stack.adapters[::-1], *stack.folders):
        if (place / RECORD).is_file():
            return place / RECORD
        if (place / "llm2vec_config.json").is_file():
            break
    return None


def _recorded_dense(record: Path) -> tuple[DenseLayer, ...]:
    rules = setting(read_json(record), "encoder", dict, record, {})
    return (read_dense(record.parent / DENSE_FOLDER),) if setting(rules, "dense", bool, record, False) else ()


def _bare_decoder(stack: ModelStack, *, name: str, revision: str | None, dense: tuple[DenseLayer, ...]) -> Checkpoint:
    """Return the checkpoint with the rules of a bare decoder."""
    path = stack.base / "config.json"
    config = read_json(path)
    stated_type, model_type = model_types(config, path)
    tokenizer = next((folder for folder in (*stack.folders, *stack.adapters[::-1]) if tokenizer_files(folder)), None)
    if tokenizer is None:
        raise ModelError(f"{stack.folders[0]} has no tokenizer: expected tokenizer.json, tokenizer.model or vocab.json")
    weights = weight_files(stack.base)
    require_sizes(config, path, weights)
    hidden_size = width_of(config, path)
    _check_dense_dimensions(hidden_size, dense)
    checkpoint = Checkpoint(
        name=name,
        revision=revision,
        base=stack.base,
        adapters=stack.adapters,
        tokenizer=tokenizer,
        model_type=model_type,
        hidden_size=hidden_size,
        max_positions=positions_of(config, path),
        max_length=length_of_decoder(config, path, tokenizer),
        weights_hash=hash_files(_hashed_files(stack, weights, dense)),
        tokenizer_hash=hash_files((file.name, file) for file in tokenizer_files(tokenizer)),
        dense=dense,
        special_tokens=special_tokens_of(tokenizer, config),
    )
    if stated_type == model_type:
        reason = checkpoint.bidirectional_reason + (
            f"; its own code, {code}, is not run" if (code := remote_code_class(config)) else ""
        )
        return replace(checkpoint, bidirectional_reason=reason)
    return replace(checkpoint, bidirectional_reason=f"{stated_type} is {model_type} with bidirectional attention")


def _hashed_files(
    stack: ModelStack, weights: Iterable[Path], dense: tuple[DenseLayer, ...]
) -> Iterator[tuple[str, Path]]:
    """Yield every file that affects what the model computes, with a name that states its role."""
    yield "base/config.json", stack.base / "config.json"
    for file in weights:
        yield f"base/{file.name}", file
    for index, adapter in enumerate(stack.adapters):
        check_safetensors(adapter / ADAPTER_WEIGHTS)
        for name in (ADAPTER_SETTINGS, ADAPTER_WEIGHTS):
            yield f"adapter {index}/{name}", adapter / name
    for index, layer in enumerate(dense):
        for file in (layer.weights, layer.weights.with_name("config.json")):
            yield f"dense {index}/{file.name}", file


def _check_dense_dimensions(width: int, dense: tuple[DenseLayer, ...]) -> None:
    for layer in dense:
        if layer.in_features != width:
            raise ModelError(f"{layer.weights.parent} expects {layer.in_features} dimensions, but receives {width}")
        width = layer.out_features


def _apply_record(bare: Checkpoint, path: Path) -> Checkpoint:
    """Apply the rules in an adaptation's record to `bare`."""
    record = read_json(path)
    if record.get("format") != RECORD_FORMAT:
        raise ModelError(f"{path} has format {quoted(record.get('format'))}: this version reads format {RECORD_FORMAT}")
    rules: dict[str, Any] = setting(record, "encoder", dict, path, {})
    pooling = setting(rules, "pooling", str, path, "mean")
    pooled_tokens = setting(rules, "pooled_tokens", str, path, "text")
    if pooling not in get_args(Pooling) or pooled_tokens not in ("text", "all"):
        raise ModelError(f"{path} has pooling {quoted(pooling)}, pooled_tokens {quoted(pooled_tokens)}: it is damaged")
    given = {name: setting(rules, name, kind, path) for name, kind in TEXT_RULES.items()}
    dims = count(rules, "dims", path)
    return replace(
        bare,
        layout="fastvec",
        bidirectional=setting(rules, "bidirectional", bool, path, True),
        bidirectional_reason="fastvec adapt trained it this way",
        pooling=pooling,
        pooled_tokens=pooled_tokens,
        dims=dims and min(dims, bare.vector_size),
        max_length=length(rules, "max_length", path) or DEFAULT_MAX_LENGTH,
        prompts=read_prompts(rules, path),
        default_prompt_name=setting(rules, "default_prompt_name", str, path),
        verbatim=setting(rules, "verbatim", bool, path, False),
        **{name: value for name, value in given.items() if value is not None},
    )


def _apply_sentence_transformers(bare: Checkpoint, folder: SentenceFolder) -> Checkpoint:
    """Apply the rules of a sentence-transformers folder to `bare`, to run it as the tool that wrote the folder does."""
    bidirectional, reason = _attention(bare, read_json(bare.base / "config.json"))
    return replace(
        bare,
        layout="sentence-transformers",
        bidirectional=bidirectional,
        bidirectional_reason=reason,
        pooling=folder.pooling,
        pooled_tokens="all",
        include_prompt=folder.include_prompt,
        normalize=folder.normalize,
        dims=folder.dims and min(folder.dims, bare.vector_size),
        max_length=length_of_sentences(folder.max_length, bare.tokenizer, bare.max_positions),
        lower_case=folder.lower_case,
        prompts=folder.prompts,
        default_prompt_name=folder.default_prompt_name,
        similarity=folder.similarity,
        verbatim=True,
    )


def _attention(bare: Checkpoint, config: dict[str, Any]) -> tuple[bool | None, str]:
    """Return whether attention in a sentence-transformers folder's model is bidirectional, and the reason.

    If the folder's own code decides, returns None and the name of the class.
    """
    parts = (config, config.get("text_config") or {})
    for part in parts:
        if part.get("is_causal") is False:
            return True, "config.json says is_causal: false"
        if part.get("use_bidirectional_attention") in (True, "all"):
            return True, "config.json says use_bidirectional_attention: true"
    code = remote_code_class(config)
    if config.get("model_type") in MODEL_TYPES:
        return True, bare.bidirectional_reason
    if code is not None and is_bidirectional_class(code):
        return True, f"{code} is published as bidirectional"
    if _names_llm2vec_code(config):
        return True, "LLM2Vec trained it this way"
    if any(part.get("is_causal") is True for part in parts):
        return False, "config.json says is_causal: true"
    if code is not None:
        return None, code
    return False, "config.json says neither is_causal: false nor use_bidirectional_attention: true"


def is_chat_base(*names: str | Path) -> bool:
    """Return whether LLM2Vec puts the texts of a model with one of these names, ids or paths, into a chat."""
    return any(Path(name).name in CHAT_BASES for name in names)


def _apply_llm2vec(bare: Checkpoint, stack: ModelStack) -> Checkpoint:
    """Apply LLM2Vec's rules and those in `llm2vec_config.json` to `bare`, if LLM2Vec made the checkpoint."""
    folders = (*stack.adapters[::-1], *stack.folders)
    path = next((file for folder in folders if (file := folder / "llm2vec_config.json").is_file()), None)
    configs = [read_json_if_any(folder / "config.json") for folder in folders]
    if path is None and not any(map(_names_llm2vec_code, configs)):
        return bare
    settings = {} if path is None else read_json(path)
    path = path or stack.folders[0]
    pooling = setting(settings, "pooling_mode", str, path, "mean")
    if pooling not in LLM2VEC_POOLINGS:
        raise ModelError(f"{path} has pooling_mode {quoted(pooling)}: expected one of {', '.join(LLM2VEC_POOLINGS)}")
    skip_instruction = setting(settings, "skip_instruction", bool, path, True)
    names = {*stack.names, *(str(config.get("_name_or_path", "")) for config in configs)}
    chat_template = is_chat_base(*names)
    return replace(
        bare,
        layout="llm2vec",
        bidirectional_reason="LLM2Vec trained it this way",
        pooling=LLM2VEC_POOLINGS[pooling],
        pooled_tokens="text" if skip_instruction else "all",
        include_prompt=not skip_instruction,
        normalize=False,
        max_length=length(settings, "max_length", path) or DEFAULT_MAX_LENGTH,
        text_max_length=count(settings, "doc_max_length", path) or 400,
        strip=chat_template or pooling == "eos_token",
        chat_template=chat_template,
        append_eos=pooling == "eos_token",
    )


def _names_llm2vec_code(config: dict[str, Any]) -> bool:
    """Return whether config.json names LLM2Vec's own model code.

    This identifies the published checkpoints, which have no llm2vec_config.json.
    """
    return re.search(r"modeling_\w+_encoder\.\w+EncoderModel$", remote_code_class(config) or "") is not None
