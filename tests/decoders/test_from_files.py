"""Decoders and tokenizers loaded without transformers, compared with those of transformers."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from fastvec.checkpoints.checkpoint import resolve
from fastvec.decoders.from_files import PlainDecoder, decoder_from_files
from fastvec.decoders.from_transformers import load_model
from fastvec.decoders.packed_transformers import Decoder
from fastvec.texts.packing import Packed, pack
from tests.helpers.checkpoints import copy, edit_json, save_adapter
from tests.helpers.tiny import save_decoder

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "qwen3 with biases": {"attention_bias": True},
}
LENGTHS = (17, 1, 9, 9, 2, 30)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def packed() -> Packed:
    random = np.random.default_rng(0)
    return pack([random.integers(0, 256, length).astype(np.int32) for length in LENGTHS])


def plain_states(decoder: PlainDecoder | None) -> torch.Tensor:
    assert decoder is not None
    return decoder(packed())


def plain(folder: Path, *, bidirectional: bool = True, dtype: torch.dtype = torch.float32) -> PlainDecoder | None:
    return decoder_from_files(resolve(folder), dtype=dtype, device="cpu", bidirectional=bidirectional, positions=64)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_states_are_those_of_transformers(tmp_path: Path, name: str, bidirectional: bool) -> None:
    folder = save_decoder(tmp_path, name.split()[0], rope_theta=5000.0, rms_norm_eps=1e-4, **FAMILIES[name])
    if "biases" in name or name == "qwen2":
        tensors = load_file(folder / "model.safetensors")
        biases = {key: torch.randn_like(value) for key, value in tensors.items() if key.endswith(".bias")}
        assert biases
        save_file(tensors | biases, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(resolve(folder), dtype=torch.float32, device="cpu")
    expected = Decoder(model, bidirectional=bidirectional)(packed())
    found = plain(folder, bidirectional=bidirectional)
    assert found is not None
    torch.testing.assert_close(plain_states(found), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert sum(p.numel() for p in found.model.parameters()) == sum(p.numel() for p in model.parameters())


def test_weights_without_an_lm_head_have_other_names(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy(tiny_llama, tmp_path / "model")
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    headless, headed = plain(folder), plain(tiny_llama)
    assert torch.equal(plain_states(headless), plain_states(headed))


def test_older_configurations_hold_the_base_of_the_rotation_by_itself(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy(tiny_llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": theta, "rope_scaling": None}))
    older, newer = plain(folder), plain(tiny_llama)
    assert torch.equal(plain_states(older), plain_states(newer))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "olmo2"},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"rope_parameters": None},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"sliding_window": 4, "model_type": "mistral"},
        {"use_sliding_window": True, "model_type": "qwen2"},
        {"layer_types": ["full_attention", "sliding_attention"], "model_type": "qwen2"},
        {"logit_scale": 2.0},
        {"quantization_config": {"bits": 4}},
        {"num_key_value_heads": None},
        {"num_attention_heads": 0},
        {"num_attention_heads": True},
        {"rms_norm_eps": "1e-5"},
        {"attention_bias": True},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"vocab_size": 100},
    ],
    ids=str,
)
def test_what_is_not_plain_is_left_to_transformers(tiny_llama: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = copy(tiny_llama, tmp_path / "model")
    checkpoint = resolve(folder)
    edit_json(folder / "config.json", **changes)
    found = decoder_from_files(checkpoint, dtype=torch.float32, device="cpu", bidirectional=True, positions=64)
    assert found is None


def test_mistral_has_a_window_where_its_configuration_is_silent(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path, "mistral", sliding_window=None)
    assert plain(folder) is not None
    config = json.loads((folder / "config.json").read_text())
    del config["sliding_window"]
    (folder / "config.json").write_text(json.dumps(config))
    assert plain(folder) is None


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads an attribute transformers renamed
def test_adapters_are_left_to_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    assert plain(save_adapter(tiny_llama, tmp_path / "adapter")) is None


def test_the_bundled_model_needs_no_transformers() -> None:
    program = (
        "import sys\n"
        "from fastvec import Encoder\n"
        "assert Encoder.from_pretrained().encode(['A whale.']).any()\n"
        "print([name for name in ('transformers', 'peft', 'torch._dynamo') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
