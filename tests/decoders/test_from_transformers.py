import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from fastvec.checkpoints.checkpoint import resolve
from fastvec.decoders.from_transformers import load_model, merge_adapter
from fastvec.decoders.packed_transformers import ATTENTION
from fastvec.errors import ModelError
from fastvec.texts.from_transformers import tokenizer_from_transformers
from tests.helpers.checkpoints import copy, edit_json, save_adapter, with_adapter
from tests.helpers.tiny import save_decoder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

TOKENS = torch.arange(3, 40)[None]


def load(model: Path, *adapters: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the model, but with transformers' attention instead of fastvec's, to compare it with transformers."""
    loaded = load_model(resolve(model, adapters=adapters), dtype=dtype, device="cpu")
    loaded.set_attn_implementation("eager")
    return loaded


def hidden(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        states: torch.Tensor = model(TOKENS, output_hidden_states=True).hidden_states[-1]
    return states


def test_the_model_is_transformers_own_frozen_and_with_our_attention(tiny_llama: Path) -> None:
    model = load_model(resolve(tiny_llama), dtype=torch.float32, device="cpu")
    assert model.config._attn_implementation == ATTENTION
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.set_attn_implementation("eager")
    reference = AutoModel.from_pretrained(tiny_llama, attn_implementation="eager")
    assert_close(hidden(model), hidden(reference), rtol=0, atol=0)


def test_phimoe_routes_by_its_threshold(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path, "phimoe", num_local_experts=4, router_jitter_noise=0.5, num_hidden_layers=2)
    reference = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    assert_close(hidden(load(folder)), hidden(reference), rtol=0, atol=0)


def test_the_weights_have_the_dtype_asked_for(tiny_llama: Path) -> None:
    model = load(tiny_llama, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_shards_make_the_same_model(tiny_llama: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "shards" / name).write_bytes((tiny_llama / name).read_bytes())
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert_close(hidden(load(tmp_path / "shards")), hidden(load(tiny_llama)), rtol=0, atol=0)


def test_loading_says_nothing(tiny_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    capfd.readouterr()
    tokenizer_from_transformers(resolve(tiny_llama))
    load(tiny_llama, adapter)
    assert capfd.readouterr() == ("", "")


def test_an_encoder_is_refused_by_name(tmp_path: Path, tiny_llama: Path) -> None:
    for model_type in ("bert", "t5"):
        folder = copy(tiny_llama, tmp_path / model_type)
        edit_json(folder / "config.json", model_type=model_type)
        with pytest.raises(ModelError, match=model_type):
            load_model(resolve(folder), dtype=torch.float32, device="cpu")


def test_weights_that_are_missing_or_of_another_shape_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy(tiny_llama, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks 1 of the tensors .*norm\.weight"):
        load(folder)
    headless = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    save_file({**headless, "model.norm.weight": norm}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="has no LM head, which mntp needs"):
        load_model(resolve(folder), dtype=torch.float32, device="cpu", headed=True)
    save_file({**tensors, "model.norm.weight": norm[:3].clone()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"has 1 tensors of another shape .*norm\.weight"):
        load(folder)


def test_a_config_that_makes_no_model_is_one_line(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy(tiny_llama, tmp_path / "model")
    edit_json(folder / "config.json", num_key_value_heads=0)
    with pytest.raises(ModelError, match=r"config\.json is not loadable") as error:
        load(folder)
    assert "\n" not in str(error.value)


# adapters


@pytest.mark.parametrize("headed", [True, False], ids=["with an LM head", "without"])
def test_a_merged_adapter_is_the_unmerged_one(tiny_llama: Path, tmp_path: Path, headed: bool) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter", headed=headed, use_rslora=True)
    kind = AutoModelForCausalLM if headed else AutoModel
    reference = hidden(with_adapter(kind.from_pretrained(tiny_llama), adapter))
    assert_close(hidden(load(tiny_llama, adapter)), reference, rtol=0, atol=1e-5)
    assert (reference - hidden(load(tiny_llama))).abs().max() > 0.1
    model = load(adapter)  # without a base given, the one it was trained on is used
    assert_close(hidden(model), reference, rtol=0, atol=1e-5)
    assert type(model) is type(load(tiny_llama))
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in load(tiny_llama).named_parameters()]


@pytest.mark.parametrize("headed", [True, False], ids=["with an LM head", "without"])
def test_a_family_that_names_its_decoder_otherwise(tmp_path: Path, headed: bool) -> None:
    # layers in transformer.h, weights transposed
    base = save_decoder(tmp_path / "gpt2", "gpt2", n_embd=64, n_layer=2, n_head=4)
    modules = ["c_attn", "c_proj"]
    adapter = save_adapter(base, tmp_path / "adapter", headed=headed, target_modules=modules, fan_in_fan_out=True)
    model = AutoModel.from_pretrained(base)
    merge_adapter(model, adapter)
    reference = with_adapter((AutoModelForCausalLM if headed else AutoModel).from_pretrained(base), adapter)
    assert_close(hidden(model.eval()), hidden(reference), rtol=0, atol=1e-5)


def test_two_adapters_are_merged_in_order(tiny_llama: Path, tmp_path: Path) -> None:
    # the second is DoRA, whose merge depends on the weights it is merged into
    first = save_adapter(tiny_llama, tmp_path / "first", headed=True)
    second = save_adapter(tiny_llama, tmp_path / "second", headed=False, seed=2, use_dora=True)
    below: Any = with_adapter(AutoModelForCausalLM.from_pretrained(tiny_llama), first)
    below = below.merge_and_unload().model
    reference = hidden(with_adapter(below, second))
    assert_close(hidden(load(tiny_llama, first, second)), reference, rtol=0, atol=1e-5)
    assert (hidden(load(tiny_llama, second, first)) - reference).abs().max() > 1e-3


def test_patterns_of_an_adapter_hold_for_the_names_it_was_trained_with(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(
        tiny_llama,
        tmp_path / "adapter",
        target_modules=r"model\.layers\.\d\.self_attn\.(q|k)_proj",
        alpha_pattern={"model.layers.1.self_attn.q_proj": 32},
        rank_pattern={"model.layers.0.self_attn.k_proj": 2},
    )
    reference = hidden(with_adapter(AutoModelForCausalLM.from_pretrained(tiny_llama), adapter))
    assert_close(hidden(load(tiny_llama, adapter)), reference, rtol=0, atol=1e-5)


def test_an_adapter_of_the_lm_head_and_whole_modules(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(
        tiny_llama, tmp_path / "adapter", target_modules=["q_proj", "lm_head"], modules_to_save=["norm"]
    )
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert any("lm_head" in name for name in tensors)
    tensors["base_model.model.model.norm.weight"] += 0.5
    save_file(tensors, adapter / "adapter_model.safetensors")
    reference = hidden(with_adapter(AutoModelForCausalLM.from_pretrained(tiny_llama), adapter))
    assert_close(hidden(load(tiny_llama, adapter)), reference, rtol=0, atol=1e-5)


def test_a_bfloat16_merge_rounds_a_float32_merge_once(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    base = copy(tiny_llama, tmp_path / "base")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors")
    wide, narrow = load(base, adapter), load(base, adapter, dtype=torch.bfloat16)
    for (name, expected), actual in zip(wide.named_parameters(), narrow.parameters(), strict=True):
        assert torch.equal(expected.bfloat16(), actual), name


def test_merging_leaves_the_base_file_as_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    before = hashlib.sha256((tiny_llama / "model.safetensors").read_bytes()).digest()
    load(tiny_llama, save_adapter(tiny_llama, tmp_path / "adapter"))
    assert hashlib.sha256((tiny_llama / "model.safetensors").read_bytes()).digest() == before


def test_every_tensor_of_an_adapter_must_find_its_place(tiny_llama: Path, tmp_path: Path) -> None:
    deeper = save_decoder(tmp_path / "deeper", "llama", num_hidden_layers=3)
    wider = save_decoder(tmp_path / "wider", "llama", intermediate_size=96)
    adapter = save_adapter(deeper, tmp_path / "deep")
    with pytest.raises(ModelError, match=r"6 unexpected tensors, e\.g\. .*layers\.2"):
        load(tiny_llama, adapter)
    with pytest.raises(ModelError, match="does not fit its base"):
        load(tiny_llama, save_adapter(wider, tmp_path / "wide"))
    with pytest.raises(ModelError, match=r"6 tensors are missing, e\.g\. .*layers\.2"):
        load(deeper, save_adapter(tiny_llama, tmp_path / "shallow"))
    edit_json(adapter / "adapter_config.json", target_modules=["no_such_layer"])
    with pytest.raises(ModelError, match="does not fit its base"):
        load(deeper, adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "has peft_type 'IA3': fastvec supports only LORA adapters"),
        ({"use_tomorrows_lora": True}, "sets use_tomorrows_lora, which the installed peft does not support"),
        ({"megatron_config": {"tensor_parallel": 1}}, "sets megatron_config, which runs code from the model"),
        ({"bias": "some"}, "does not fit its base"),
        ({"r": "four"}, "does not fit its base"),
    ],
)
def test_adapter_settings_that_cannot_be_met(
    tiny_llama: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", **change)
    with pytest.raises(ModelError, match=message):
        load(tiny_llama, adapter)
