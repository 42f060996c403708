"""LoRA adapters, merged into the weights of a model without its LM head."""

from dataclasses import fields
from pathlib import Path

from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from fastvec.checkpoints.model_files import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, read_json
from fastvec.errors import ModelError, one_line

PEFT_PREFIX = "base_model.model."


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
