import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastvec.checkpoints import model_files
from fastvec.checkpoints.checkpoint import Checkpoint, resolve
from fastvec.errors import ModelError
from tests.helpers.checkpoints import copy, edit_json, save_adapter, save_to_hub_cache, use_hub_cache

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads an attribute transformers renamed


@pytest.fixture(scope="session")
def tiny_adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tiny_llama, tmp_path_factory.mktemp("adapters") / "mntp", headed=False)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_hub_cache(tmp_path / "hub", monkeypatch)


def refusal(model: Path | None, *adapters: Path) -> str:
    """Return the error message of `resolve`, which must be one line."""
    with pytest.raises(ModelError) as error:
        resolve(model, adapters=adapters)
    line = str(error.value)
    assert "\n" not in line
    return line


def test_a_bare_decoder_is_bidirectional_mean_pooled_over_its_text_and_normalized(tiny_llama: Path) -> None:
    checkpoint = resolve(tiny_llama)
    assert checkpoint == Checkpoint(
        name=str(tiny_llama),
        revision=None,
        base=tiny_llama,
        adapters=(),
        tokenizer=tiny_llama,
        model_type="llama",
        hidden_size=64,
        max_positions=512,
        max_length=512,
        weights_hash=checkpoint.weights_hash,
        tokenizer_hash=checkpoint.tokenizer_hash,
        layout="transformers",
        bidirectional=True,
        bidirectional_reason="the default for a bare decoder",
        pooling="mean",
        pooled_tokens="text",
        normalize=True,
    )
    assert checkpoint.vector_size == 64


@pytest.mark.parametrize(
    ("tokenizer", "positions", "expected"),
    [(10**30, 512, 512), (1e30, 4096, 512), (300, 512, 300), (8192, 2048, 2048), (10**30, 128, 128), (None, None, 512)],
)
def test_max_length_is_the_tokenizers_within_the_models_positions(
    llama: Path, tokenizer: float | None, positions: int | None, expected: int
) -> None:
    edit_json(llama / "tokenizer_config.json", model_max_length=tokenizer)
    edit_json(llama / "config.json", max_position_embeddings=positions)
    assert resolve(llama).max_length == expected


@pytest.mark.parametrize(
    "ropes",
    [
        {"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 64}},
        {"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 64},
        {"rope_parameters": {"full": {"rope_type": "dynamic", "original_max_position_embeddings": 64}, "sliding": {}}},
    ],
)
def test_max_length_is_where_rotary_positions_would_change(llama: Path, ropes: dict[str, object]) -> None:
    edit_json(llama / "config.json", max_position_embeddings=2048, **ropes)
    assert resolve(llama).max_length == 64


def test_max_length_is_not_that_of_positions_that_never_change(llama: Path) -> None:
    ropes = {"rope_type": "yarn", "original_max_position_embeddings": 64}
    edit_json(llama / "config.json", max_position_embeddings=2048, rope_parameters=ropes)
    assert resolve(llama).max_length == 512


def test_a_single_adapter_needs_no_list(tiny_llama: Path, tiny_adapter: Path) -> None:
    for adapters in (str(tiny_adapter), tiny_adapter):
        assert resolve(tiny_llama, adapters=adapters).adapters == (tiny_adapter,)  # type: ignore[arg-type]


def test_reading_a_checkpoint_imports_no_torch(tiny_llama: Path) -> None:
    use = f"from fastvec.checkpoints.checkpoint import resolve; resolve({str(tiny_llama)!r})"
    code = f"import sys; {use}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_no_model_is_the_bundled_one() -> None:
    checkpoint = resolve(None)
    assert (checkpoint.name, checkpoint.layout, checkpoint.vector_size) == ("fastvec-mini", "fastvec", 256)


# damaged and unknown folders


def test_each_missing_or_damaged_file_is_named(llama: Path) -> None:
    weights = llama / "model.safetensors"
    whole = weights.read_bytes()
    for content in (b"", whole[:5], whole[:1000], whole[:-1], b"version https://git-lfs.github.com/spec/v1\noid"):
        weights.write_bytes(content)
        assert f"{weights} is an incomplete or damaged safetensors file" in refusal(llama)
    weights.write_bytes(whole)

    config = llama / "config.json"
    text = config.read_text()
    for damaged in ("{", "[]", '"llama"', "\0", "[" * 100_000):
        config.write_text(damaged)
        assert str(config) in refusal(llama)
    changes: list[tuple[dict[str, object], str]] = [
        ({"model_type": None}, "has no model_type"),
        ({"model_type": 7}, "has model_type 7"),
        ({"max_position_embeddings": -1}, "has max_position_embeddings -1"),
        ({"max_position_embeddings": True}, "has max_position_embeddings True"),
        ({"quantization_config": {"quant_method": "gptq"}}, "has quantized weights"),
    ]
    for change, message in changes:
        config.write_text(text)
        edit_json(config, **change)
        assert message in refusal(llama)
    config.unlink()
    assert f"{llama} has no config.json" in refusal(llama)


def test_a_folder_without_a_tokenizer(llama: Path) -> None:
    (llama / "tokenizer.json").unlink()
    assert "has no tokenizer" in refusal(llama)


@pytest.mark.parametrize(
    ("file", "message"),
    [("pytorch_model.bin", "is a pickle"), ("model.gguf", "is GGUF"), ("README.md", "reads only safetensors")],
)
def test_weights_in_another_format(llama: Path, file: str, message: str) -> None:
    (llama / "model.safetensors").rename(llama / file)
    assert message in refusal(llama)


def test_shards_come_from_the_index_and_each_must_be_there(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "model-00001-of-00002.safetensors")
    index = llama / "model.safetensors.index.json"
    shard = "model-00001-of-00002.safetensors"
    edit_json(index, weight_map={"model.norm.weight": shard})
    resolve(llama)
    edit_json(index, weight_map={"model.norm.weight": shard, "lm_head.weight": "model-00002-of-00002.safetensors"})
    assert f"{llama / 'model-00002-of-00002.safetensors'} is missing" in refusal(llama)
    listings: list[object] = [None, [], {"model.norm.weight": "../model.safetensors"}, {"model.norm.weight": 3}]
    for damaged in listings:
        edit_json(index, weight_map=damaged)
        assert str(index) in refusal(llama)


# what the hashes depend on


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_the_weights_hash_sees_what_changes_the_vectors(llama: Path, file: str) -> None:
    before = resolve(llama)
    if file == "config.json":
        edit_json(llama / file, rms_norm_eps=1e-5)
    else:
        content = bytearray((llama / file).read_bytes())
        content[-1] ^= 1
        (llama / file).write_bytes(content)
    after = resolve(llama)
    assert (before.weights_hash != after.weights_hash, before.tokenizer_hash != after.tokenizer_hash) == (True, False)


def test_the_tokenizer_hash_sees_its_files_and_nothing_else(llama: Path) -> None:
    before = resolve(llama)
    (llama / "README.md").write_text("about")
    assert resolve(llama) == before
    edit_json(llama / "tokenizer_config.json", bos_token="</s>")
    after = resolve(llama)
    assert (before.weights_hash != after.weights_hash, before.tokenizer_hash != after.tokenizer_hash) == (False, True)


# adapters


def test_an_adapter_alone_brings_its_base_and_its_tokenizer(tiny_llama: Path, tiny_adapter: Path) -> None:
    checkpoint = resolve(tiny_adapter)
    assert (checkpoint.base, checkpoint.adapters) == (tiny_llama, (tiny_adapter,))
    assert checkpoint.tokenizer == tiny_llama
    assert checkpoint.layout == "transformers"
    assert checkpoint.weights_hash == resolve(tiny_llama, adapters=[tiny_adapter]).weights_hash
    assert checkpoint.weights_hash != resolve(tiny_llama).weights_hash


def test_adapters_lie_on_each_other_lowest_first(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path, hub_cache: Path
) -> None:
    on_adapter = copy(tiny_adapter, tmp_path / "simcse")
    edit_json(on_adapter / "adapter_config.json", base_model_name_or_path=str(tiny_adapter))
    last = copy(tiny_adapter, tmp_path / "last")
    checkpoint = resolve(on_adapter, adapters=[last])
    assert (checkpoint.base, checkpoint.adapters) == (tiny_llama, (tiny_adapter, on_adapter, last))
    assert checkpoint.added == (str(last),)
    other_order = resolve(tiny_adapter, adapters=[last, on_adapter])
    assert other_order.weights_hash != resolve(tiny_adapter, adapters=[on_adapter, last]).weights_hash
    snapshot = save_to_hub_cache(tiny_adapter, hub_cache, "org/adapter")
    assert resolve(tiny_llama, adapters=["org/adapter"]).adapters == (snapshot,)


def test_a_folder_of_weights_and_an_adapter_is_merged_by_itself(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    both = copy(tiny_llama, tmp_path / "both")
    for file in tiny_adapter.iterdir():
        if file.name != "README.md":
            (both / file.name).write_bytes(file.read_bytes())
    checkpoint = resolve(both, adapters=[tiny_adapter])
    assert (checkpoint.base, checkpoint.adapters) == (both, (both, tiny_adapter))


def test_an_adapter_that_leads_nowhere(tiny_llama: Path, tiny_adapter: Path, tmp_path: Path, hub_cache: Path) -> None:
    adapter = copy(tiny_adapter, tmp_path / "adapter")
    settings = adapter / "adapter_config.json"
    edit_json(settings, base_model_name_or_path="org/absent")
    assert "is an adapter, and its base model cannot be found: org/absent" in refusal(adapter)
    edit_json(settings, base_model_name_or_path=str(adapter))
    assert "is an adapter that names itself as base" in refusal(adapter)
    edit_json(settings, base_model_name_or_path=None)
    assert "is an adapter without a base model" in refusal(adapter)
    assert resolve(tiny_llama, adapters=[adapter]).adapters == (adapter,)  # works because the base is given
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "adapter_model.bin is a pickle" in refusal(tiny_llama, adapter)
    assert "has no adapter_config.json" in refusal(tiny_llama, tiny_llama)


# LLM2Vec

SAVED_BY_LLM2VEC = {"pooling_mode": "weighted_mean", "max_length": 256, "doc_max_length": 200, "skip_instruction": True}


def test_llm2vec_rules_come_from_the_last_folder_that_states_them(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    supervised = copy(tiny_adapter, tmp_path / "supervised")
    edit_json(supervised / "llm2vec_config.json", **SAVED_BY_LLM2VEC)
    checkpoint = resolve(tiny_adapter, adapters=[supervised])
    assert checkpoint.layout == "llm2vec"
    assert (checkpoint.bidirectional, checkpoint.bidirectional_reason) == (True, "LLM2Vec trained it this way")
    assert (checkpoint.pooling, checkpoint.pooled_tokens, checkpoint.normalize) == ("weighted_mean", "text", False)
    assert (checkpoint.max_length, checkpoint.text_max_length) == (256, 200)
    assert (checkpoint.chat_template, checkpoint.append_eos, checkpoint.strip) == (False, False, False)
    assert resolve(supervised).layout == "llm2vec"


@pytest.mark.parametrize(
    ("mode", "pooling", "append_eos"),
    [
        ("mean", "mean", False),
        ("eos_token", "last", True),
        ("last_token", "last", False),
        ("bos_token", "first", False),
    ],
)
def test_llm2vec_pooling_modes(llama: Path, mode: str, pooling: str, append_eos: bool) -> None:
    edit_json(llama / "llm2vec_config.json", pooling_mode=mode)
    checkpoint = resolve(llama)
    assert (checkpoint.pooling, checkpoint.append_eos, checkpoint.strip) == (pooling, append_eos, append_eos)
    assert (checkpoint.max_length, checkpoint.text_max_length) == (512, 400)


def test_llm2vec_that_pools_the_instruction_pools_every_token(llama: Path) -> None:
    edit_json(llama / "llm2vec_config.json", skip_instruction=False)
    checkpoint = resolve(llama)
    assert (checkpoint.pooled_tokens, checkpoint.include_prompt) == ("all", True)


def test_a_published_llm2vec_checkpoint_is_known_by_the_code_it_names(tiny_adapter: Path, tmp_path: Path) -> None:
    mntp = copy(tiny_adapter, tmp_path / "mntp")  # config.json and an adapter, no weights and no llm2vec_config.json
    auto_map = {
        "AutoModel": "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp--modeling_llama_encoder.LlamaEncoderModel"
    }
    (mntp / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": auto_map}))
    checkpoint = resolve(mntp)
    assert (checkpoint.layout, checkpoint.pooling, checkpoint.normalize) == ("llm2vec", "mean", False)


@pytest.mark.parametrize(
    ("base", "wrapped"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", True),
        ("/models/Mistral-7B-Instruct-v0.2/", True),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", False),  # LLM2Vec trained this one without a template
        ("meta-llama/Meta-Llama-3-8B", False),
    ],
)
def test_llm2vec_wraps_the_bases_it_knows_by_name(
    tiny_llama: Path, llama: Path, tiny_adapter: Path, tmp_path: Path, base: str, wrapped: bool
) -> None:
    adapter = copy(tiny_adapter, tmp_path / "supervised")
    edit_json(adapter / "llm2vec_config.json", **SAVED_BY_LLM2VEC)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=base)
    checkpoint = resolve(tiny_llama, adapters=[adapter])
    assert (checkpoint.chat_template, checkpoint.strip) == (wrapped, wrapped)

    edit_json(llama / "llm2vec_config.json", **SAVED_BY_LLM2VEC)  # saved merged: only config.json names the base
    edit_json(llama / "config.json", _name_or_path=base)
    assert resolve(llama).chat_template is wrapped


def test_an_instruct_model_that_is_not_llm2vecs_is_not_wrapped(llama: Path) -> None:
    edit_json(llama / "config.json", _name_or_path="meta-llama/Meta-Llama-3-8B-Instruct")
    assert not resolve(llama).chat_template


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling_mode": "max"}, "has pooling_mode 'max'"),
        ({"pooling_mode": 3}, "has pooling_mode 3"),
        ({"max_length": "512"}, "has max_length '512'"),
        ({"doc_max_length": 0}, "has doc_max_length 0"),
    ],
)
def test_llm2vec_settings_that_make_no_sense(llama: Path, settings: dict[str, object], message: str) -> None:
    edit_json(llama / "llm2vec_config.json", **settings)
    assert message in refusal(llama)


def test_each_weight_file_is_parsed_once(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Path] = []
    check = model_files.check_safetensors

    def counted(file: Path) -> int:
        parsed.append(file)
        return check(file)

    monkeypatch.setattr(model_files, "check_safetensors", counted)
    resolve(tiny_llama)
    assert parsed == [tiny_llama / "model.safetensors"]
