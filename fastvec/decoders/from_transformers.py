"""What a `Checkpoint` names, loaded by transformers: the model with its adapters merged.

transformers is handed tensors, not a folder: so the files that are loaded are those that were checked and hashed, and
what else it does with a folder (read pickles, follow an adapter to the hub, run code) cannot happen.
"""

import logging
import re
from collections.abc import Collection
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
from fastvec.errors import ModelError, one_line
from fastvec.system.libraries import quiet_libraries

logger = logging.getLogger(__name__)

PEFT_PREFIX = "base_model.model."
WRAPPERS = ("_orig_mod.", "module.")
TEXT_PART = "they are the text part of a model with several; save that part alone, with its own config.json"
FOREIGN_PREFIXES = {
    "base_model.model.": "PEFT saved them inside its wrapper; save what its merge_and_unload() gives",
    "language_model.": TEXT_PART,
    "model.language_model.": TEXT_PART,
}
# Tensors that no hidden state depends on, or that are computed anew: heads and the layers of multi-token prediction,
# buffers of rotary frequencies and causal masks, scales of a quantised key-value cache, towers for images and sound.
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
    """The decoder, adapters merged, frozen, with our attention, and its LM head where `headed`; no dropout of its own.

    Causal or not is `Decoder`'s part. Raises ModelError where a tensor is missing or does not fit.
    """
    tensors = _tensors(checkpoint.base)
    with quiet_libraries():
        try:
            config = _config(checkpoint)
            _silence(config)
            mapping: Any = MODEL_FOR_CAUSAL_LM_MAPPING if headed else MODEL_MAPPING
            model, found = mapping[type(config)].from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=dtype,
                device_map={"": device},
                attn_implementation=ATTENTION,
                ignore_mismatched_sizes=True,  # told below, by name
                output_loading_info=True,
            )
        except torch.OutOfMemoryError:
            raise ModelError(f"{checkpoint.name} does not fit into the memory of {device} as {dtype}") from None
        except Exception as error:  # transformers computes with a config's values and raises what comes
            raise ModelError(f"{checkpoint.base / 'config.json'} makes no model: {one_line(error)}") from None
        _refuse_unfilled(checkpoint.base, found)
        _refuse_unread(checkpoint.base, config, found["unexpected_keys"])
        for adapter in checkpoint.adapters:
            merge_adapter(model.base_model, adapter)
    decoder: PreTrainedModel = model.requires_grad_(False).eval()
    return decoder


def _config(checkpoint: Checkpoint) -> PretrainedConfig:
    path = checkpoint.base / "config.json"
    content = read_json(path)
    if content["model_type"] == checkpoint.model_type:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            checkpoint.base, trust_remote_code=False, local_files_only=True
        )
    else:  # a type of a folder's own code, which has the settings of one of transformers'
        config = CONFIG_MAPPING[checkpoint.model_type].from_dict(content | {"model_type": checkpoint.model_type})
    return config


def _tensors(base: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model, without what torch.compile and DistributedDataParallel put before every name.

    Raises ModelError where every name begins with what another wrapper puts there.
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


def _silence(config: PretrainedConfig) -> None:
    """No dropout and no jitter of the architecture's own: they draw from a generator whose state nobody keeps."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("drop" in name or name.endswith("jitter_noise")):
            setattr(config, name, 0.0)


def _refuse_unfilled(base: Path, found: dict[str, set[object]]) -> None:
    """transformers would fill with random numbers what the files do not hold."""
    if found["missing_keys"] == {"lm_head.weight"}:
        raise ModelError(f"{base} holds no LM head, which mntp needs: give an adapter, or what it was made from")
    for problem, what in (("missing_keys", "does not hold"), ("mismatched_keys", "holds in another shape")):
        if tensors := sorted(map(str, found[problem])):
            raise ModelError(f"{base} {what} {len(tensors)} of the tensors its config.json asks for: {tensors[0]}")


def _refuse_unread(base: Path, config: PretrainedConfig, names: Collection[str]) -> None:
    """Tensors that transformers would drop in silence are a part of the model that config.json does not ask for."""
    layers = int(getattr(config.get_text_config(), "num_hidden_layers", 0))
    unread = sorted(name for name in names if not HARMLESS.search(name))
    further = [name for name in unread if (found := LAYER.search(name)) and int(found[1]) >= layers]
    if lost := [name for name in unread if name not in further]:
        shown = ", ".join(lost[:3])
        raise ModelError(
            f"{base} holds {len(lost)} tensors that a {config.model_type} model of its config.json does not read: "
            f"{shown}; correct model_type and settings there, or take the weights they belong to"
        )
    if further:
        logger.warning(
            "%s holds more layers than the %d of num_hidden_layers in its config.json: they are not run", base, layers
        )


def merge_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Add the LoRA adapter in `folder` to the weights of `model`, in place.

    An adapter trained on a model with its LM head says `model.layers.0…` where one trained without says `layers.0…`,
    and peft loads nothing, in silence, where the names differ. So the model is put under the name the adapter uses, and
    every tensor must find its place; those of an LM head have none here and decide nothing.

    peft sums in float32 and rounds to the model's type once per adapter: the same weights as a merge in float32 gives
    where the base is stored in that type, without a float32 copy (28 GB for 7 billion parameters).

    Raises ModelError for another kind of adapter, and for tensors without a place or without a value.
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
        raise ModelError(f"the adapter {folder} does not fit its base: {len(lost)} tensors have no place, as {lost[0]}")
    if absent := sorted(name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name):
        raise ModelError(f"the adapter {folder} is not whole: {len(absent)} tensors are missing, as {absent[0]}")
    tuned.merge_and_unload()


def _lora_config(folder: Path) -> LoraConfig:
    path = folder / ADAPTER_SETTINGS
    settings = read_json(path)
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"{path} is of type {settings.get('peft_type')!r}: fastvec merges LORA adapters")
    if settings.get("megatron_config"):  # peft imports the module that megatron_core names
        raise ModelError(f"{path} names code of Megatron, and fastvec runs no code from a model: save it without")
    known = {field.name for field in fields(LoraConfig)}
    if unknown := sorted(name for name, value in settings.items() if value and name not in known):
        raise ModelError(f"{path} sets {', '.join(unknown)}, which this peft does not know: upgrade peft")
    # a task makes peft expect an LM head
    kept = {name: value for name, value in settings.items() if name in known} | {"task_type": None}
    modules = kept.get("modules_to_save")
    kept["modules_to_save"] = [name for name in modules or () if name != "lm_head"] or None
    return LoraConfig(**kept)
