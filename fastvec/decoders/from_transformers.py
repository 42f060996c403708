"""Load the model of a `Checkpoint` with transformers, and merge its adapters.

transformers receives tensors, not a folder. So the loaded files are exactly those that were checked and hashed, and
transformers cannot do what else it does with a folder: read pickles, follow an adapter to the hub, run code.
"""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.checkpoints.model_files import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, read_json, weight_files
from fastvec.decoders.packed_transformers import ATTENTION
from fastvec.errors import ModelError, one_line, quoted
from fastvec.system.libraries import quiet_libraries
from fastvec.system.memory import is_out_of_memory

logger = logging.getLogger(__name__)

BUFFERS = 1 << 26  # elements of a model's buffers that are never refused
PEFT_PREFIX = "base_model.model."
WRAPPERS = ("_orig_mod.", "module.")
TEXT_PART = "they belong to the text part of a multimodal model; save only that part, with its own config.json"
FOREIGN_PREFIXES = {
    "base_model.model.": "PEFT saved them with its wrapper; save the model that merge_and_unload() returns",
    "language_model.": TEXT_PART,
    "model.language_model.": TEXT_PART,
}
# Tensors that no hidden state depends on, or that are recomputed: heads and multi-token prediction layers, buffers of
# rotary frequencies and causal masks, scales of a quantized key-value cache, vision and audio towers.
HARMLESS = re.compile(
    r"(^|\.)(lm_head|embed_out|mtp|mtp_layers|rotary_emb|masked_bias|k_scale|v_scale"
    r"|visual|vision_\w+|vision|audio_\w+|embed_vision|embed_audio|multi_modal_projector|mm_projector)(\.|$)"
    r"|\.attn(\.attention)?\.bias$"
    r"|^(score|classifier|decoder|head|output_projection|qa_outputs|(v|value|reward|regression)_head)\."
)
LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")


def load_model(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device | str, headed: bool = False
) -> PreTrainedModel:
    """Load the decoder in eval mode: adapters merged, weights frozen, fastvec's attention, no dropout of its own.

    It has its LM head if `headed`. `Decoder` decides whether it runs causal. Raises ModelError if the config makes no
    model, a tensor is missing, unknown or of another shape, an adapter does not fit, or memory runs out.
    """
    tensors = _tensors(checkpoint.base)
    with quiet_libraries():
        try:
            config = _config(checkpoint)
            _disable_dropout(config)
            mapping: Any = MODEL_FOR_CAUSAL_LM_MAPPING if headed else MODEL_MAPPING
            _require_parameters(mapping[type(config)], config, tensors, checkpoint.base / "config.json")
            model, found = mapping[type(config)].from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=dtype,
                device_map={"": device},
                attn_implementation=ATTENTION,
                ignore_mismatched_sizes=True,  # reported by name in _require_all_tensors
                output_loading_info=True,
            )
        except ModelError:
            raise
        except torch.OutOfMemoryError:
            raise ModelError(f"{checkpoint.name} does not fit into the memory of {device} as {dtype}") from None
        except Exception as error:  # transformers computes with the config's values and raises all kinds of errors
            if is_out_of_memory(error):  # not the config's fault
                raise
            raise ModelError(f"{checkpoint.base / 'config.json'} is not loadable: {one_line(error)}") from None
        _require_all_tensors(checkpoint.base, found)
        _refuse_unread(checkpoint.base, config, found["unexpected_keys"])
        for adapter in checkpoint.adapters:
            merge_adapter(model.base_model, adapter)
    decoder: PreTrainedModel = model.requires_grad_(False).eval()
    return decoder


def _require_parameters(
    architecture: Any, config: PretrainedConfig, tensors: Mapping[str, torch.Tensor], path: Path
) -> None:
    """Raise ModelError if the model is far larger than `tensors`: transformers would fill the rest with random numbers.

    An LM head that the tensors lack, and buffers such as causal masks, are allowed for.
    """
    config._attn_implementation = ATTENTION  # that of config.json may be code from the hub
    with torch.device("meta"):
        model = architecture(config)
    asked = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    stored = sum(tensor.numel() for tensor in tensors.values())
    if asked > 2 * stored + BUFFERS:
        raise ModelError(f"{path} asks for {asked:,} parameters, but the weights have {stored:,}: it is damaged")


def _config(checkpoint: Checkpoint) -> PretrainedConfig:
    path = checkpoint.base / "config.json"
    content = read_json(path)
    if content["model_type"] == checkpoint.model_type:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            checkpoint.base, trust_remote_code=False, local_files_only=True
        )
    else:  # the type of a folder's own code, with the settings of a transformers type
        config = CONFIG_MAPPING[checkpoint.model_type].from_dict(content | {"model_type": checkpoint.model_type})
    return config


def _tensors(base: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a model, without the name prefixes of torch.compile and DistributedDataParallel.

    Raises ModelError if every name begins with the prefix of another wrapper.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(base):
        tensors |= load_file(file)
    while prefix := _common_prefix(tensors, WRAPPERS):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if prefix := _common_prefix(tensors, tuple(FOREIGN_PREFIXES)):
        raise ModelError(f"the names of all tensors in {base} begin with {prefix}: {FOREIGN_PREFIXES[prefix]}")
    return tensors


def _common_prefix(names: Collection[str], prefixes: Collection[str]) -> str | None:
    return next((prefix for prefix in prefixes if names and all(name.startswith(prefix) for name in names)), None)


def _disable_dropout(config: PretrainedConfig) -> None:
    """Disable the architecture's own dropout and jitter, which draw from a generator whose state is not saved."""
    # a threshold for which experts share a token, in inference too, and no noise
    kept = {"router_jitter_noise"} if config.model_type == "phimoe" else set[str]()
    for name, value in config.to_dict().items():
        if isinstance(value, float) and is_noise(name) and name not in kept:
            setattr(config, name, 0.0)


def is_noise(name: str) -> bool:
    """Whether a setting of config.json with this name is a probability or size of training noise."""
    return "drop" in name or name.endswith("jitter_noise")


def _require_all_tensors(base: Path, found: dict[str, set[object]]) -> None:
    """Raise ModelError for missing or mismatched tensors, which transformers would fill with random numbers."""
    if found["missing_keys"] == {"lm_head.weight"}:
        raise ModelError(f"{base} has no LM head, which mntp needs: use an adapter, or the model it was trained from")
    if tensors := sorted(map(str, found["missing_keys"])):
        raise ModelError(f"{base} lacks {len(tensors)} of the tensors its config.json asks for: {tensors[0]}")
    if tensors := sorted(map(str, found["mismatched_keys"])):
        raise ModelError(
            f"{base} has {len(tensors)} tensors of another shape than its config.json asks for: {tensors[0]}"
        )


def _refuse_unread(base: Path, config: PretrainedConfig, names: Collection[str]) -> None:
    """Raise ModelError for tensors that transformers would silently drop: config.json does not ask for them.

    Layers beyond num_hidden_layers only cause a warning.
    """
    layers = int(getattr(config.get_text_config(), "num_hidden_layers", 0))
    unread = sorted(name for name in names if not HARMLESS.search(name))
    further = [name for name in unread if (found := LAYER.search(name)) and int(found[1]) >= layers]
    if lost := [name for name in unread if name not in further]:
        shown = ", ".join(lost[:3])
        raise ModelError(
            f"{base} has {len(lost)} tensors that a {config.model_type} model with its config.json does not use: "
            f"{shown}; correct model_type and settings in config.json, or use matching weights"
        )
    if further:
        logger.warning(
            "%s has more layers than the %d of num_hidden_layers in its config.json: the rest is ignored", base, layers
        )


def merge_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Merge the LoRA adapter in `folder` into the weights of `model`, in place.

    An adapter trained on a model with its LM head names tensors `model.layers.0…`; one trained without, `layers.0…`.
    If the names differ from the model's, peft silently loads nothing. So the model is wrapped under the name that the
    adapter uses, and every tensor must match. Tensors of an LM head are skipped: no hidden state depends on them.

    peft adds in float32 and rounds to the model's dtype once per adapter. If the base is stored in that dtype, the
    weights equal those of a merge in float32, without a float32 copy (28 GB for 7 billion parameters).

    Raises ModelError for any other kind of adapter, and for unexpected or missing tensors.
    """
    config = _lora_config(folder)
    tensors = {name: tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items() if "lm_head." not in name}
    headed = any(name.startswith(f"{PEFT_PREFIX}{model.base_model_prefix}.") for name in tensors)
    target = nn.ModuleDict({model.base_model_prefix: model}) if headed else model
    try:
        tuned = PeftModel(target, config)
        result = set_peft_model_state_dict(tuned, tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(f"the adapter {folder} does not fit its base: {one_line(error)}") from None
    if lost := sorted(result.unexpected_keys):
        raise ModelError(f"the adapter {folder} does not fit its base: {len(lost)} unexpected tensors, e.g. {lost[0]}")
    if absent := sorted(name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name):
        raise ModelError(f"the adapter {folder} is incomplete: {len(absent)} tensors are missing, e.g. {absent[0]}")
    tuned.merge_and_unload()


def _lora_config(folder: Path) -> LoraConfig:
    path = folder / ADAPTER_SETTINGS
    settings = read_json(path)
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            f"{path} has peft_type {quoted(settings.get('peft_type'))}: fastvec supports only LORA adapters"
        )
    if settings.get("megatron_config"):  # peft would import the module that `megatron_core` names
        raise ModelError(f"{path} sets megatron_config, which runs code from the model: remove the setting")
    known = {field.name for field in fields(LoraConfig)}
    if unknown := sorted(name for name, value in settings.items() if value and name not in known):
        raise ModelError(f"{path} sets {', '.join(unknown)}, which the installed peft does not support: upgrade peft")
    # with a task type, peft expects an LM head
    kept = {name: value for name, value in settings.items() if name in known} | {"task_type": None}
    modules = kept.get("modules_to_save")
    kept["modules_to_save"] = [name for name in modules or () if name != "lm_head"] or None
    return LoraConfig(**kept)
