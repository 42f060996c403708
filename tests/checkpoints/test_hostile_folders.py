"""Folders that run code in a careless loader: the code would create a canary file, which must never appear."""

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvec.checkpoints.checkpoint import resolve
from fastvec.decoders.from_transformers import load_model
from fastvec.decoders.load import load_dense
from fastvec.errors import ModelError
from fastvec.texts.from_transformers import tokenizer_from_transformers
from fastvec.texts.prompt import text_affixes
from tests.helpers.checkpoints import copy, edit_json, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads an attribute transformers renamed


class Bomb:
    """Runs a shell command when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists(), "code from the folder ran"


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with importable Python files beside it: its folder is on sys.path and is the working directory."""
    folder = copy(tiny_llama, tmp_path / "model")
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def load_everything(model: Path, *adapters: Path) -> None:
    checkpoint = resolve(model, adapters=adapters)
    load_model(checkpoint, dtype=torch.float32, device="cpu")
    load_dense(checkpoint, device="cpu")
    text_affixes(checkpoint, tokenizer_from_transformers(checkpoint))


def test_the_canary_works(canary: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(canary)))
    canary.unlink()


def test_auto_map_of_a_known_family_is_passed_over(folder: Path) -> None:
    auto_map = {"AutoConfig": "configuration_evil.Evil", "AutoModel": "modeling_evil.Evil"}
    edit_json(folder / "config.json", auto_map=auto_map, architectures=["Evil"])
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]})
    load_everything(folder)


def test_a_family_of_its_own_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "configuration_evil.Evil"})
    with pytest.raises(ModelError, match="evil"):
        load_everything(folder)


@pytest.mark.parametrize("tokenizer", ["tokenization_evil.Evil", "Evil", "os.system"])
def test_a_tokenizer_class_is_a_name_in_transformers(folder: Path, tokenizer: str) -> None:
    edit_json(folder / "tokenizer_config.json", tokenizer_class=tokenizer)
    load_everything(folder)
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil"] * 2})
    with pytest.raises(ModelError, match="it needs Python code from the model, which fastvec never runs"):
        load_everything(folder)


def test_pickles_beside_safetensors_are_not_opened(folder: Path, canary: Path) -> None:
    bomb = pickle.dumps(Bomb(canary))
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "adapter_model.bin",
        "vocab.pkl",
        ".metadata",
    ):
        (folder / name).write_bytes(bomb)
    load_everything(folder)
    edit_json(folder / "config.json", transformers_weights="pytorch_model.bin")
    with pytest.raises(ModelError, match="neither a safetensors file"):
        load_everything(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.ckpt"])
def test_pickles_alone_are_refused_by_name(folder: Path, canary: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(ModelError, match=f"{name} is a pickle"):
        load_everything(folder)


def test_a_pickle_named_safetensors_is_refused(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(ModelError, match="is an incomplete or damaged safetensors file"):
        load_everything(folder)


def sentence_folder(folder: Path, *modules: tuple[str, str]) -> None:
    chain = [{"type": kind, "path": path} for kind, path in modules]
    (folder / "modules.json").write_text(json.dumps(chain))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")


@pytest.mark.parametrize(
    "kind",
    [
        "modeling_evil.Evil",
        "modeling_evil",
        "os.system",
        "sentence_transformers.models.Evil",
        "sentence_transformers.models.../modeling_evil.Transformer",
        "sentence_transformers.models.Transformer;import modeling_evil",
        "sentence_transformers.cross_encoder.Transformer",
        "torch.nn.Linear",
    ],
)
def test_a_module_of_another_type_is_refused(folder: Path, kind: str) -> None:
    sentence_folder(folder, (kind, ""), ("sentence_transformers.models.Pooling", "1_Pooling"))
    with pytest.raises(ModelError, match="never runs code from a model"):
        load_everything(folder)


@pytest.mark.parametrize(
    "path", ["../model", "..", "a/../../b", "/etc", "..\\model", "C:\\model", "\\\\host\\share", None, 3]
)
def test_a_module_outside_the_folder_is_refused(folder: Path, path: str) -> None:
    transformer = ("sentence_transformers.models.Transformer", path)
    sentence_folder(folder, transformer, ("sentence_transformers.models.Pooling", "1_Pooling"))
    with pytest.raises(ModelError, match="expected a subfolder of it"):
        load_everything(folder)


@pytest.mark.parametrize("activation", ["modeling_evil.Evil", "os.system", "torch.hub.load", "torch.nn.modeling_evil"])
def test_an_activation_is_one_of_a_list(folder: Path, activation: str) -> None:
    sentence_folder(
        folder,
        ("sentence_transformers.models.Transformer", ""),
        ("sentence_transformers.models.Pooling", "1_Pooling"),
        ("sentence_transformers.models.Dense", "2_Dense"),
    )
    (folder / "2_Dense").mkdir()
    settings = {"in_features": 64, "out_features": 32, "bias": True, "activation_function": activation}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="has the activation"):
        load_everything(folder)


def test_an_adapters_pickle_is_refused(tiny_llama: Path, tmp_path: Path, canary: Path) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(ModelError, match=r"adapter_model\.bin is a pickle"):
        load_everything(tiny_llama, adapter)


def test_an_adapter_names_no_code(folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    edit_json(
        adapter / "adapter_config.json",
        auto_mapping={"base_model_class": "Evil", "parent_library": "modeling_evil"},
        base_model_name_or_path=str(folder),
        megatron_core="modeling_evil",
    )
    load_everything(adapter)
    edit_json(adapter / "adapter_config.json", megatron_config={"tensor_model_parallel_size": 1})
    with pytest.raises(ModelError, match="sets megatron_config, which runs code from the model"):
        load_everything(adapter)


def test_an_adapter_beside_the_weights_is_not_loaded_from_its_pickle(
    folder: Path, canary: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(folder, tmp_path / "adapter")
    (folder / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        load_everything(folder)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}{{ self.__init__.__globals__.__builtins__.open('x', 'w') }}",
        "{% import 'modeling_evil' as evil %}",
        "{% include 'config.json' %}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(folder: Path, template: str) -> None:
    edit_json(folder / "config.json", _name_or_path="Qwen/Qwen2-7B-Instruct")
    edit_json(folder / "llm2vec_config.json", pooling_mode="mean")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match="template"):
        load_everything(folder)
    assert not (folder / "x").exists()
