"""What a `Checkpoint` names, loaded: the model with its adapters merged, the tokenizer, the Dense layers.

transformers is handed tensors, not a folder: so the files that are loaded are those that were checked and hashed, and
what else it does with a folder (read pickles, follow an adapter to the hub, run code) cannot happen.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, normalizers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from fastvec.adapters import merge_adapter
from fastvec.checkpoint import Checkpoint
from fastvec.decoder import ATTENTION
from fastvec.errors import ModelError
from fastvec.model_files import weight_files
from fastvec.sentence_folder import DenseLayer
from fastvec.settings import EncoderSettings
from fastvec.tokenize import TextRecipe, TextTokenizer


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
            raise ModelError(f"{checkpoint.base / 'config.json'} makes no model: {_line(error)}") from None
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
            reason = "it needs code of its own, and fastvec runs no code from a model" if own_code else _line(error)
            raise ModelError(f"the tokenizer in {checkpoint.tokenizer} cannot be loaded: {reason}") from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelError(f"{checkpoint.tokenizer} has no fast tokenizer: expected a tokenizer.json")
    if checkpoint.lower_case:
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return tokenizer


def load_dense(checkpoint: Checkpoint, *, device: torch.device | str) -> nn.Sequential:
    """The Dense layers in float32, one after another; without any, it returns what it is given.

    Raises ModelError where the weights are not those the folder's config.json describes.
    """
    layers: list[nn.Module] = []
    for dense in checkpoint.dense:
        layers += [_linear(dense), getattr(nn, dense.activation)()]
    return nn.Sequential(*layers).requires_grad_(False).to(device)


def _linear(dense: DenseLayer) -> nn.Linear:
    linear = nn.Linear(dense.in_features, dense.out_features, bias=dense.bias)
    weights = {name.removeprefix("linear."): tensor for name, tensor in load_file(dense.weights).items()}
    try:
        linear.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"{dense.weights} does not fit its config.json: {_line(error)}") from None
    return linear


def text_tokenizer(
    settings: EncoderSettings,
    tokenizer: PreTrainedTokenizerBase,
    instruction: str | None = None,
    prompt_name: str | None = None,
) -> TextTokenizer:
    """What turns texts into token ids by a checkpoint's rules; raises UsageError as `EncoderSettings.prefix` does."""
    checkpoint = settings.checkpoint
    prefix = settings.prefix(instruction, prompt_name)
    before, after = text_frame(checkpoint, tokenizer)
    recipe = TextRecipe(
        prefix=before + prefix,
        suffix=after,
        max_length=settings.max_length,
        text_max_length=checkpoint.text_max_length,
        pooled=settings.pooled_span(prefix),
        strip_end=checkpoint.strip,
    )
    return TextTokenizer(tokenizer, recipe)


def text_frame(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What stands before the instruction and after the text: a user turn, an EOS, or nothing.

    Raises ModelError where the checkpoint needs a chat template or an EOS and the tokenizer has none.
    """
    before, after = _user_turn(checkpoint, tokenizer) if checkpoint.chat_template else ("", "")
    if checkpoint.append_eos:
        eos = tokenizer.eos_token
        if not isinstance(eos, str):
            raise ModelError(f"{checkpoint.name} pools its EOS token, and its tokenizer names none")
        if not after.endswith(eos):
            after += " </s>" if eos == "</s>" else eos  # the space is LLM2Vec's; a SentencePiece makes a token of it
    return before, after


def _user_turn(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template puts before and after a user's message, without BOS and white space at the ends.

    A default system message is no part of it (in some templates it holds today's date): where a template takes two user
    messages in a row, the second one's turn is the turn alone.
    """

    def render(*messages: str) -> str:
        turns = [{"role": "user", "content": message} for message in messages]
        return str(tokenizer.apply_chat_template(turns, tokenize=False))

    try:
        turn = first = render("fastvec")
    except Exception as error:  # a template is a program, and can fail like one
        raise ModelError(f"{checkpoint.name} was trained in a chat template it does not hold: {_line(error)}") from None
    with suppress(Exception):  # templates that want an answer in between have no default system message
        both = render("fastvec", "fastvec")
        turn = both.removeprefix(first) if both.startswith(first) else first
    before, message, after = turn.partition("fastvec")
    if not message:
        raise ModelError(f"the chat template of {checkpoint.name} leaves out the user's message")
    return before.removeprefix(str(tokenizer.bos_token or "")).lstrip(), after.rstrip()


def _refuse_unfilled(base: Path, found: dict[str, set[object]]) -> None:
    """transformers would fill with random numbers what the files do not hold."""
    for problem, what in (("missing_keys", "does not hold"), ("mismatched_keys", "holds in another shape")):
        if tensors := sorted(map(str, found[problem])):
            raise ModelError(f"{base} {what} {len(tensors)} of the tensors its config.json asks for: {tensors[0]}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


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
