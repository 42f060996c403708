import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedTokenizerFast

import fastvec
from fastvec.checkpoints.families import FAMILIES
from fastvec.decoders.kernel_check import kernel_check
from fastvec.decoders.packed_transformers import Decoder, Noise, forward_packed
from fastvec.errors import UsageError
from fastvec.system.libraries import quiet_libraries
from fastvec.texts.packing import pack
from fastvec.training import learner
from fastvec.training.learner import Learner, lora_targets, mask_id
from fastvec.training.metrics import read_metrics
from fastvec.training.objectives.noise import control_noise
from fastvec.training.objectives.readout import run_kernels
from fastvec.training.trainer import training_arguments
from fastvec_kernels import _switch, torch_ops
from fastvec_kernels._launch import kernels_on_cpu
from tests import ROOT
from tests.decoders.test_packed_transformers import random_sequences
from tests.helpers.tiny_families import tiny_config, tiny_model
from tests.training.test_plan import plan

LLAMA = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


# the common layers, a fused qkv projection, experts, learned positions; the other families are slow tests
DAILY = {"llama", "qwen2", "gemma2", "phi3", "mixtral", "gpt_neox", "gpt2"}


@pytest.mark.parametrize(
    "model_type", [pytest.param(one, marks=() if one in DAILY else pytest.mark.slow) for one in FAMILIES]
)
def test_every_family_takes_an_adapter_whose_every_weight_learns(model_type: str) -> None:
    """A weight without a gradient would also make DistributedDataParallel fail."""
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"the installed transformers has no {model_type}")
    settings = tiny_config(model_type).to_dict()
    # load_model does the same; test_job.py tests that
    own_dropout: dict[str, Any] = {
        name: 0.0 for name, value in settings.items() if "drop" in name and isinstance(value, float)
    }
    model = tiny_model(model_type, **own_dropout)
    Decoder(model, bidirectional=True)
    targets = lora_targets(model)
    with quiet_libraries():
        tuned = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.1, target_modules=targets)).train()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    source = control_noise(tuned)
    packed = pack(random_sequences())
    noise = Noise(seed=1, numbers=range(5), attention_dropout=0.2)
    source.set(noise, packed.lengths, torch.device("cpu"))
    states = forward_packed(tuned, packed, noise)
    (states * torch.from_numpy(np.random.default_rng(0).standard_normal(states.shape))).sum().backward()  # type: ignore[no-untyped-call]
    silent = [
        name
        for name, parameter in tuned.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().max() > 0)
    ]
    assert silent == []
    if model_type in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"):
        assert targets == LLAMA


@pytest.mark.slow
def test_gradient_checkpointing_reaches_the_layers_and_changes_no_loss(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeated = []
    take = Learner.take_trained

    def look(own: Learner) -> Any:
        repeated.append(any(getattr(module, "gradient_checkpointing", False) for module in own.model.modules()))
        return take(own)

    monkeypatch.setattr(Learner, "take_trained", look)
    for on in (False, True):  # as on a CPU, as on a GPU
        monkeypatch.setattr(learner, "_saves_activations", lambda *_, on=on: on)
        options: dict[str, Any] = {
            "steps": 3,
            "batch_size": 4,
            "max_length": 32,
            "dtype": "float32",
            "device": "cpu",
            "lr": 1e-2,
        }
        data = [ROOT / "tests" / "data" / "articles.parquet"]
        fastvec.adapt(
            objective="mntp", model=tiny_llama, data=data, column="text", output=tmp_path / f"{on}", **options
        )
    assert repeated == [False, True]
    assert read_metrics(tmp_path / "True" / "metrics.jsonl") == read_metrics(tmp_path / "False" / "metrics.jsonl")


def test_the_mask_token_is_the_one_asked_for_the_tokenizers_or_an_underscore(
    tiny_llama: object, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    size = len(tokenizer)
    assert mask_id(tokenizer, None, size) == tokenizer.mask_token_id == 2
    underscore = tokenizer.convert_tokens_to_ids("_")
    assert mask_id(tokenizer, "_", size) == underscore
    tokenizer.mask_token = None
    with caplog.at_level(logging.INFO, "fastvec"):
        assert mask_id(tokenizer, None, size) == underscore
    assert caplog.messages == ["masked tokens are replaced by '_', an underscore"]
    for given, embeddings in (("two words", size), ("_", underscore)):
        with pytest.raises(UsageError, match=f"'{given}' is not one of its tokens, or has no embedding"):
            mask_id(tokenizer, given, embeddings)


def test_a_tokenizer_without_mask_and_underscore_gives_unk_or_a_reserved_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reserved = ["<|reserved_special_token_0|>", "<unused1>", "[unused2]"]
    vocabulary = {token: index for index, token in enumerate(["a", "b", "extra", "<unk>", *reserved])}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    with_unknown = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>")
    assert mask_id(with_unknown, None, 7) == 3
    without = PreTrainedTokenizerFast(tokenizer_object=bare)
    with caplog.at_level(logging.INFO, "fastvec"):
        assert [mask_id(without, None, embeddings) for embeddings in (7, 6)] == [6, 5]
    assert caplog.messages[0] == "masked tokens are replaced by '[unused2]', the tokenizer's last reserved token"
    with pytest.raises(UsageError, match="no mask token, no '_', no unknown and no reserved token: give one"):
        mask_id(without, None, 4)


@pytest.mark.slow
def test_a_kernel_of_training_that_does_not_compile_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU of a machine without a compiler, dropout and pooling would otherwise fail in the first step."""

    def cannot(*_: Any, **__: Any) -> None:
        raise RuntimeError("failed to find C compiler")

    monkeypatch.setattr(_switch, "_on_torch", {})
    for name in ("dropout", "pooling.op"):
        monkeypatch.setattr(import_module(f"fastvec_kernels.{name}"), "launch", cannot)
    decoder = Decoder(tiny_model("llama"), bidirectional=True)
    packed = pack(random_sequences())
    with torch.no_grad(), kernels_on_cpu():
        with kernel_check():
            run_kernels(decoder, "mean", packed)
        assert torch_ops().keys() == {"dropout", "pool"}
        run_kernels(decoder, "mean", packed)


def test_one_process_trains_on_one_gpu(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two, the Trainer would copy the model to both in each step, and leave out autocast."""
    build = training_arguments

    def with_two(*given: Any) -> Any:
        arguments = build(*given)
        arguments._n_gpu = 2
        return arguments

    monkeypatch.setattr(learner, "training_arguments", with_two)
    with quiet_libraries():
        learned = Learner(plan(tiny_llama), tmp_path)
    assert not isinstance(learned.trainer._wrap_model(learned.model), torch.nn.DataParallel)
