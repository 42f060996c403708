"""Writes the folder of an adaptation: adapter or weights, tokenizer, record (`fastvec.json`), model card.

fastvec opens every such folder, and peft opens an adapter. Whole weights (merged or fully fine-tuned) also open in
plain transformers, vLLM and sentence-transformers; in the last only if it would pool the same tokens, because it cannot
leave out a BOS. The folder has LLM2Vec's settings file, unless the model has a Dense layer, which LLM2Vec does not
support. A Dense layer is saved in a subfolder, in the layout of sentence-transformers.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fastvec import __version__
from fastvec.checkpoints.checkpoint import DENSE_FOLDER, RECORD, RECORD_FORMAT, TEXT_RULES, Checkpoint, is_chat_base
from fastvec.checkpoints.model_files import ADAPTER_SETTINGS, read_json
from fastvec.decoders.from_transformers import is_noise
from fastvec.settings import EncoderSettings
from fastvec.system.durable_files import sync_tree, write_durably
from fastvec.training.recipe import Recipe

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"  # next to merged weights; in the same folder, transformers would merge it again
LLM2VEC_POOLINGS = {"mean": "mean", "weighted_mean": "weighted_mean", "last": "last_token", "first": "bos_token"}
ST_POOLINGS = {"mean": "mean", "weighted_mean": "weightedmean", "last": "lasttoken", "first": "cls"}
# The adapter settings known to every peft since the first version that has all settings of LLM2Vec's adapters. An older
# peft rejects settings it does not know; fastvec uses none of the newer ones.
KNOWN_TO_ANY_PEFT = (
    "peft_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "r",
    "target_modules",
    "lora_alpha",
    "lora_dropout",
    "fan_in_fan_out",
    "bias",
    "modules_to_save",
    "init_lora_weights",
)
# in Gemma 3 and 4, use_bidirectional_attention also changes the window, so only is_causal is set
WINDOW_CHANGES = ("gemma3_text", "gemma4_text")
# In transformers, these architectures do not tell SDPA that attention is bidirectional. For a single text there is no
# mask, and SDPA then assumes causal attention. config.json, which transformers reads, therefore asks for eager.
DROPS_IS_CAUSAL = ("nemotron", "stablelm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptation:
    """What is saved, and the facts for its record and model card."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    settings: EncoderSettings
    recipe: Recipe
    fingerprint: Mapping[str, Any]
    results: Mapping[str, Any]
    merge: bool
    dense: nn.Linear | None = None  # after the pooling


def save_adaptation(folder: Path, done: Adaptation) -> None:
    """Write everything into `folder`, the record last: a folder with a record is complete."""
    checkpoint, model = done.settings.checkpoint, done.model
    if done.tokenizer.pad_token is None:  # other tools pad; any token serves, because the attention mask excludes it
        done.tokenizer.pad_token = done.tokenizer.eos_token
    done.tokenizer.save_pretrained(folder)
    if isinstance(model, PeftModel):
        if not checkpoint.added:  # an adapter can name only one base, and this one would need two
            _save_adapter(model, folder / ADAPTER_FOLDER if done.merge else folder, done)
        if done.merge:
            model = model.merge_and_unload()
    if isinstance(model, PreTrainedModel):
        model.to(_dtype(done.settings.dtype)).save_pretrained(folder)
        _mend_config(folder / "config.json", read_json(checkpoint.base / "config.json"), done.settings)
        _save_sentence_transformers(folder, done)
        if done.recipe.objective == "mntp" and not getattr(model.config, "tie_word_embeddings", True):
            beside = done.merge and not checkpoint.added
            logger.info(
                "the weights were saved without their LM head, which only mntp needs: to continue with mntp, "
                "give %s as --model",
                "the adapter in the folder adapter" if beside else "an adapter made without --merge and --full",
            )
    if done.dense is not None:
        save_dense(folder / DENSE_FOLDER, done.dense)
    elif _is_for_llm2vec(done.settings):
        _save_llm2vec(folder, done.settings)
    (folder / "README.md").write_text(card(done), encoding="utf-8")
    sync_tree(folder)
    write_durably(folder / RECORD, json.dumps(record(done), indent=2) + "\n")


def record(done: Adaptation) -> dict[str, Any]:
    """Return the content of `fastvec.json`."""
    settings, checkpoint = done.settings, done.settings.checkpoint
    return {
        "format": RECORD_FORMAT,
        "version": __version__,
        "encoder": {
            "bidirectional": settings.bidirectional,
            "pooling": settings.pooling,
            "pooled_tokens": checkpoint.pooled_tokens,
            "max_length": settings.max_length,
            "dense": done.dense is not None,
            "dims": _dims(done),
            "prompts": _prompts(done),
            "default_prompt_name": checkpoint.default_prompt_name,
            "verbatim": checkpoint.verbatim,
            **{rule: getattr(checkpoint, rule) for rule in TEXT_RULES},
        },
        "base": {"model": checkpoint.name, "revision": checkpoint.revision, "adapters": list(checkpoint.added)},
        "fingerprint": dict(done.fingerprint),
        "results": dict(done.results),
    }


def _prompts(done: Adaptation) -> dict[str, str]:
    """Return the checkpoint's prompts, and as that of queries the instruction that they were trained with, if any."""
    prompts, instruction = dict(done.settings.checkpoint.prompts), done.recipe.instruction
    if done.recipe.objective == "contrastive" and instruction is not None:
        prompts["query"] = done.settings.prefix(instruction)
    return prompts


def _dims(done: Adaptation) -> int | None:
    """Return the checkpoint's truncated width; None for distillation, which learns vectors at full width."""
    return None if done.recipe.objective == "distil" else done.settings.checkpoint.dims


def _is_for_llm2vec(settings: EncoderSettings) -> bool:
    """Return whether LLM2Vec would make the same vectors.

    It makes a decoder bidirectional, and puts the texts of some base models, known by their names, into a chat.
    """
    checkpoint = settings.checkpoint
    in_a_chat = is_chat_base(checkpoint.name, checkpoint.base)
    return settings.bidirectional and in_a_chat == checkpoint.chat_template


def _save_llm2vec(folder: Path, settings: EncoderSettings) -> None:
    content = {
        "pooling_mode": LLM2VEC_POOLINGS[settings.pooling],
        "max_length": settings.max_length,
        "doc_max_length": settings.max_length,
        "skip_instruction": settings.pooled_tokens == "text",
    }
    _write_json(folder / "llm2vec_config.json", content)


def save_dense(folder: Path, dense: nn.Linear) -> None:
    """Write a Dense layer in the layout of sentence-transformers."""
    folder.mkdir(exist_ok=True)
    content = {
        "in_features": dense.in_features,
        "out_features": dense.out_features,
        "bias": dense.bias is not None,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write_json(folder / "config.json", content)
    tensors = {f"linear.{name}": tensor.contiguous() for name, tensor in dense.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


def _save_adapter(model: PeftModel, folder: Path, done: Adaptation) -> None:
    config = model.peft_config["default"]
    config.base_model_name_or_path = _base_name(done.settings.checkpoint)
    config.revision = done.settings.checkpoint.revision
    config.inference_mode = True
    model.save_pretrained(str(folder), save_embedding_layers=False)
    settings = read_json(folder / ADAPTER_SETTINGS)
    kept = {name: settings[name] for name in KNOWN_TO_ANY_PEFT if name in settings}
    _write_json(folder / ADAPTER_SETTINGS, kept | {"target_modules": sorted(settings["target_modules"])})


def _base_name(checkpoint: Checkpoint) -> str:
    """Return the name by which an adapter refers to this checkpoint, also in peft: a hub id or an absolute path."""
    top = (checkpoint.base, *checkpoint.adapters)[-1]
    return checkpoint.name if checkpoint.revision else str(top.resolve())


def _mend_config(path: Path, base: Mapping[str, Any], settings: EncoderSettings) -> None:
    """Write the direction of attention into config.json, and restore the values of noise that loading set to 0."""
    config = read_json(path)
    config |= {name: value for name, value in base.items() if is_noise(name) and name in config}
    config["is_causal"] = not settings.bidirectional
    if settings.bidirectional and settings.checkpoint.model_type not in WINDOW_CHANGES:
        config["use_bidirectional_attention"] = True
    if settings.bidirectional and settings.checkpoint.model_type in DROPS_IS_CAUSAL:
        config["attn_implementation"] = "eager"
    _write_json(path, config)


def _save_sentence_transformers(folder: Path, done: Adaptation) -> None:
    settings, checkpoint = done.settings, done.settings.checkpoint
    specials = done.tokenizer.num_special_tokens_to_add()
    if settings.pooled_tokens == "text" and specials:
        logger.info(
            "sentence-transformers would pool the special tokens too, so its files were not written: "
            "adapt with --pool-tokens all for a folder that it can open"
        )
        return
    if unknown := [rule for rule in ("chat_template", "append_eos", "text_max_length") if getattr(checkpoint, rule)]:
        logger.info("sentence-transformers has no %s, so its files were not written", " and no ".join(unknown))
        return
    save_modules(
        folder,
        pooling=ST_POOLINGS[settings.pooling],
        hidden_size=checkpoint.hidden_size,
        max_length=settings.max_length,
        dense=done.dense is not None,
        include_prompt=checkpoint.include_prompt and settings.pooled_tokens == "all",
        lower_case=checkpoint.lower_case,
        dims=_dims(done),
        prompts=_prompts(done),
        default_prompt_name=checkpoint.default_prompt_name,
    )


def save_modules(
    folder: Path,
    *,
    pooling: str,
    hidden_size: int,
    max_length: int,
    dense: bool = False,
    include_prompt: bool = True,
    lower_case: bool = False,
    dims: int | None = None,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
) -> None:
    """Write the files that sentence-transformers reads besides the decoder, with a module that normalizes the vectors.

    `pooling` is the mode as sentence-transformers names it.
    """
    types = ["Transformer", "Pooling", *["Dense"] * dense, "Normalize"]
    paths = ["", *(f"{place}_{kind}" for place, kind in enumerate(types[1:], start=1))]  # DENSE_FOLDER among them
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(types, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")
    for name in paths[1:]:
        (folder / name).mkdir(exist_ok=True)
    _write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": hidden_size, "pooling_mode": pooling, "include_prompt": include_prompt},
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": lower_case})
    said: dict[str, Any] = {"model_type": "SentenceTransformer", "prompts": dict(prompts or {})}
    said |= {"default_prompt_name": default_prompt_name, "similarity_fn_name": "cosine", "truncate_dim": dims}
    stated = {name: value for name, value in said.items() if value is not None}
    _write_json(folder / "config_sentence_transformers.json", stated)


def card(done: Adaptation) -> str:
    """Return the model card: what the model is, how it was trained, and the results."""
    recipe, base = done.recipe, done.settings.checkpoint.name
    parts = " and ".join(f"`{part}`" for part in (base, *done.settings.checkpoint.added))
    said = {name: value for name, value in recipe.to_json().items() if value not in (None, (), [])}
    measured = {name: value for name, value in done.results.items() if value is not None}
    return "\n".join(
        [
            "---",
            "library_name: fastvec",
            "pipeline_tag: feature-extraction",
            "tags: [text-embeddings]",
            "---",
            "",
            f"# {Path(base).name}, adapted by {recipe.objective}",
            "",
            f"A text encoder made from {parts} by `fastvec adapt` {__version__}, objective {recipe.objective}.",
            f"Attention is {'bidirectional' if done.settings.bidirectional else 'causal'}; vectors are the "
            f"{done.settings.pooling.replace('_', ' ')} over the {done.settings.pooled_tokens} tokens, normalized.",
            "",
            "```",
            "fastvec embed corpus.parquet -o vecs.arrow --model .",
            "```",
            "",
            *_peft_lines(done),
            "| setting | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in said.items()),
            "",
            "| measured | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in measured.items()),
            "",
            "`fastvec.json` has every setting and a fingerprint of model and data; `metrics.jsonl` has all metrics.",
            "",
        ]
    )


def _peft_lines(done: Adaptation) -> list[str]:
    """Return the lines on opening an adapter whose base is an adapter, which peft does not load by itself."""
    checkpoint = done.settings.checkpoint
    if done.merge or done.recipe.full or not checkpoint.adapters:
        return []
    said = "The base is itself an adapter, and peft silently replaces it with this one: merge the base adapter first"
    if not all((adapter / RECORD).is_file() for adapter in checkpoint.adapters):
        return [f"{said}.", ""]  # an adapter made elsewhere: its model may have an LM head and other layer names
    below = [read_json(adapter / ADAPTER_SETTINGS)["base_model_name_or_path"] for adapter in checkpoint.adapters]
    return [
        f"{said}, here with `from peft import PeftModel` and `from transformers import AutoModel`:",
        "",
        "```python",
        f"model = AutoModel.from_pretrained({below[0]!r})",
        f"model.config.is_causal = {not done.settings.bidirectional}",
        f"for adapter in {[*below[1:], _base_name(checkpoint), '.']}:",
        "    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()",
        "```",
        "",
    ]


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
