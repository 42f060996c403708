"""What a `Checkpoint` names, loaded by transformers: the model with its adapters merged, the tokenizer.

transformers is handed tensors, not a folder: so the files that are loaded are those that were checked and hashed, and
what else it does with a folder (read pickles, follow an adapter to the hub, run code) cannot happen.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from fastvec.adapters import merge_adapter
from fastvec.checkpoint import Checkpoint
from fastvec.decoder import ATTENTION
from fastvec.errors import ModelError, one_line
from fastvec.framing import lower_if_asked
from fastvec.model_files import weight_files


def load_model(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device | str, headed: bool = False
) -> PreTrainedModel:
    """The decoder, adapters merged, frozen, with our attention, and its LM head where `headed`; no dropout of its own.

    Causal or not is `Decoder`'s part. Raises ModelError where a tensor is missing or does not fit.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(checkpoint.base):
        tensors |= load_file(file)
    with quiet_libraries():
        try:
            config = AutoConfig.from_pretrained(checkpoint.base, trust_remote_code=False, local_files_only=True)
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
        for adapter in checkpoint.adapters:
            merge_adapter(model.base_model, adapter)
    decoder: PreTrainedModel = model.requires_grad_(False).eval()
    return decoder


def _silence(config: PretrainedConfig) -> None:
    """No dropout and no jitter of the architecture's own: they draw from a generator whose state nobody keeps."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("drop" in name or name.endswith("jitter_noise")):
            setattr(config, name, 0.0)


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer, with a `tokenizers` backend and lower-casing where the checkpoint asks for it.

    Raises ModelError where its files make none.
    """
    with quiet_libraries():
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                checkpoint.tokenizer, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # the tokenizers library raises nothing more precise
            own_code = "trust_remote_code" in str(error)
            reason = "it needs code of its own, and fastvec runs no code from a model" if own_code else one_line(error)
            raise ModelError(f"the tokenizer in {checkpoint.tokenizer} cannot be loaded: {reason}") from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelError(f"{checkpoint.tokenizer} has no fast tokenizer: expected a tokenizer.json")
    lower_if_asked(checkpoint, backend)
    return tokenizer


def _refuse_unfilled(base: Path, found: dict[str, set[object]]) -> None:
    """transformers would fill with random numbers what the files do not hold."""
    if found["missing_keys"] == {"lm_head.weight"}:
        raise ModelError(f"{base} holds no LM head, which mntp needs: give an adapter, or what it was made from")
    for problem, what in (("missing_keys", "does not hold"), ("mismatched_keys", "holds in another shape")):
        if tensors := sorted(map(str, found[problem])):
            raise ModelError(f"{base} {what} {len(tensors)} of the tensors its config.json asks for: {tensors[0]}")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the libraries' progress bars, reports and warnings: what matters of them is checked, and raised."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.set_verbosity_error()
        log.disable_progress_bar()
        try:
            yield
        finally:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
