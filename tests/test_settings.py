import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastvec.errors import ModelError
from fastvec.settings import _cpu_multiplies_bfloat16, resolve_settings
from tests.helpers.checkpoints import edit_json, save_adapter, save_to_hub_cache, use_hub_cache


@pytest.mark.parametrize(
    ("flags", "has_it"),
    [
        ("flags : fpu avx2 avx512f avx512_bf16", True),
        ("flags : fpu amx_tile amx_bf16", True),
        ("Features : fp asimd bf16", True),
        ("flags : fpu avx2 avx512f avx512_vnni", False),
    ],
)
def test_bfloat16_needs_instructions_of_its_own(tmp_path: Path, flags: str, has_it: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name : a processor\n{flags}\n")
    assert _cpu_multiplies_bfloat16(cpuinfo) is has_it


def test_a_system_without_cpuinfo_computes_in_float32(tmp_path: Path) -> None:
    assert _cpu_multiplies_bfloat16(tmp_path / "nothing") is False


@pytest.mark.parametrize(("instructions", "faster"), [(True, True), (True, False), (False, True)])
def test_auto_is_bfloat16_on_a_cpu_with_instructions_that_are_fast(
    tiny_llama: Path, instructions: bool, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastvec.settings._cpu_multiplies_bfloat16", lambda: instructions)
    monkeypatch.setattr("fastvec.decoders.cpu_choices.bfloat16_is_faster", lambda: faster)
    expected = "bfloat16" if instructions and faster else "float32"
    assert resolve_settings(tiny_llama, device="cpu").dtype == expected


def test_a_bare_decoder_by_default(tiny_llama: Path) -> None:
    settings = resolve_settings(tiny_llama, device="cpu", dtype="float32")
    found = (settings.pooling, settings.pooled_tokens, settings.normalize, settings.bidirectional)
    assert found == ("mean", "text", True, True)
    assert (settings.max_length, settings.dims, settings.device, settings.dtype) == (512, 64, "cpu", "float32")


def test_an_instruction_has_one_space_behind_it_and_an_empty_one_none(tiny_llama: Path) -> None:
    settings = resolve_settings(tiny_llama, device="cpu")
    assert [settings.prefix(text) for text in (None, "", " \n", " Find: ")] == ["", "", "", "Find: "]


def test_last_and_first_are_of_the_whole_sequence(tiny_llama: Path) -> None:
    for pooling in ("last", "first"):
        settings = resolve_settings(tiny_llama, device="cpu", pooling=pooling)
        assert (settings.pooled_tokens, settings.pooled_span("Find: ")) == ("all", "sequence")


def test_the_fingerprint_follows_every_choice(tiny_llama: Path) -> None:
    plain = resolve_settings(tiny_llama, device="cpu", dtype="float32").fingerprint(None, None)
    choices: dict[str, dict[str, Any]] = {
        "pooling": {"pooling": "weighted_mean"},
        "normalize": {"normalize": False},
        "max_length": {"max_length": 17},
        "bidirectional": {"bidirectional": False},
        "dims": {"dims": 8},
        "dtype": {"dtype": "bfloat16"},
    }
    for field, choice in choices.items():
        other = resolve_settings(tiny_llama, **{"device": "cpu", "dtype": "float32", **choice}).fingerprint(None, None)
        assert [name for name in plain if plain[name] != other[name]] == [field]


def test_the_fingerprint_follows_the_rules_of_the_checkpoint(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llm2vec"
    shutil.copytree(tiny_llama, folder)
    found = []
    for limit in (400, 300):
        (folder / "llm2vec_config.json").write_text(json.dumps({"pooling_mode": "mean", "doc_max_length": limit}))
        found.append(resolve_settings(folder, device="cpu").fingerprint(None, None))
    assert [name for name in found[0] if found[0][name] != found[1][name]] == ["text_max_length"]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads an attribute that transformers renamed
def test_a_model_of_the_hub_is_found_in_the_cache_of_another_machine(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    found = []
    for machine in ("there", "here"):
        save_to_hub_cache(tiny_llama, tmp_path / machine)
        save_to_hub_cache(adapter, tmp_path / machine, "org/adapter")
        use_hub_cache(tmp_path / machine, monkeypatch)
        found.append(resolve_settings("org/tiny", adapters=["org/adapter"], device="cpu", dtype="float32", eos=True))
    there, here = found
    assert there.checkpoint.base.is_relative_to(tmp_path / "there")
    assert there.on_this_machine() is there  # this machine has that path too
    shutil.rmtree(tmp_path / "there")
    assert there.on_this_machine() == here


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads an attribute that transformers renamed
def test_a_model_that_is_not_on_this_machine_or_another_one(llama: Path, tmp_path: Path) -> None:
    settings = resolve_settings(llama, device="cpu", dtype="float32")
    llama.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="llama: no such folder"):
        settings.on_this_machine()

    adapter = save_adapter(tmp_path / "moved", tmp_path / "adapter")
    settings = resolve_settings(tmp_path / "moved", adapters=[adapter], device="cpu", dtype="float32")
    moved = replace(settings, checkpoint=replace(settings.checkpoint, base=tmp_path / "gone"))
    assert moved.on_this_machine() == settings
    edit_json(tmp_path / "moved" / "tokenizer.json", truncation=None, version="2.0")
    with pytest.raises(ModelError, match="moved is another model here: put the same files under this name"):
        moved.on_this_machine()
