import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastvec.checkpoints.checkpoint import resolve
from fastvec.errors import ModelError
from tests.helpers.checkpoints import copy, edit_json, save_adapter

# sentence-transformers and peft read attributes that transformers renamed
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

Save = Callable[..., Path]


@pytest.fixture
def save(tiny_llama: Path, tmp_path: Path) -> Save:
    """Return a function that saves a folder with sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    def write(
        pooling: str = "mean",
        *,
        base: Path = tiny_llama,
        include_prompt: bool = True,
        dense: tuple[int, ...] = (),
        normalize: bool = False,
        max_seq_length: int | None = None,
        **settings: object,
    ) -> Path:
        transformer = Transformer(str(base), max_seq_length=max_seq_length)
        modules: list[torch.nn.Module] = [transformer, Pooling(64, pooling, include_prompt=include_prompt)]
        for before, after in zip((64, *dense), dense, strict=False):
            modules.append(Dense(before, after, activation_function=torch.nn.GELU()))
        model = SentenceTransformer(modules=modules + [Normalize()] * normalize, device="cpu", **settings)
        model.save(str(tmp_path / "saved"), create_model_card=False)
        return tmp_path / "saved"

    return write


def test_a_folder_is_run_as_sentence_transformers_runs_it(save: Save) -> None:
    folder = save(
        "lasttoken",
        include_prompt=False,
        dense=(48, 32),
        normalize=True,
        max_seq_length=77,
        prompts={"query": "q: "},
        default_prompt_name="query",
        truncate_dim=16,
    )
    checkpoint = resolve(folder)
    assert checkpoint.layout == "sentence-transformers"
    assert (checkpoint.base, checkpoint.tokenizer) == (folder, folder)
    assert not checkpoint.bidirectional
    assert checkpoint.bidirectional_reason == (
        "config.json says neither is_causal: false nor use_bidirectional_attention: true"
    )
    assert (checkpoint.pooling, checkpoint.pooled_tokens, checkpoint.include_prompt) == ("last", "all", False)
    assert [layer.weights.parent.name for layer in checkpoint.dense] == ["2_Dense", "3_Dense"]
    assert (checkpoint.hidden_size, checkpoint.vector_size, checkpoint.dims) == (64, 32, 16)
    assert (checkpoint.normalize, checkpoint.max_length) == (True, 77)
    assert (checkpoint.prompts, checkpoint.default_prompt_name) == ({"query": "q: ", "document": ""}, "query")
    assert checkpoint.verbatim


def test_nothing_is_added_to_a_plain_folder(save: Save) -> None:
    checkpoint = resolve(save())
    assert (checkpoint.pooling, checkpoint.include_prompt, checkpoint.normalize) == ("mean", True, False)
    assert (checkpoint.dense, checkpoint.dims, checkpoint.default_prompt_name) == ((), None, None)
    assert (checkpoint.lower_case, checkpoint.chat_template, checkpoint.append_eos) == (False, False, False)


@pytest.mark.parametrize(("mode", "pooling"), [("cls", "first"), ("weightedmean", "weighted_mean")])
def test_pooling_modes(save: Save, mode: str, pooling: str) -> None:
    assert resolve(save(mode)).pooling == pooling


@pytest.mark.parametrize("mode", ["max", "mean_sqrt_len_tokens", ("mean", "lasttoken")])
def test_pooling_modes_fastvec_does_not_have_are_named(save: Save, mode: str | tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match=mode if isinstance(mode, str) else "mean', 'lasttoken"):
        resolve(save(mode))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"is_causal": False}, "config.json says is_causal: false"),
        ({"use_bidirectional_attention": True}, "config.json says use_bidirectional_attention: true"),
    ],
)
def test_a_folder_that_says_so_is_bidirectional(
    save: Save, tiny_llama: Path, tmp_path: Path, config: dict[str, bool], reason: str
) -> None:
    base = copy(tiny_llama, tmp_path / "bidirectional")
    edit_json(base / "config.json", **config)
    checkpoint = resolve(save(base=base))
    assert (checkpoint.bidirectional, checkpoint.bidirectional_reason) == (True, reason)


def test_an_older_folder_has_flags_and_other_class_paths(save: Save) -> None:
    folder = save("mean", dense=(32,), normalize=True)
    modules = json.loads((folder / "modules.json").read_text())
    transformer = folder / "0_Transformer"
    transformer.mkdir()
    for file in [file for file in folder.iterdir() if file.is_file() and file.name != "modules.json"]:
        if file.name != "config_sentence_transformers.json":
            file.rename(transformer / file.name)
    for module in modules:
        name = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{name}"
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").unlink()
    (transformer / "sentence_bert_config.json").write_text('{"max_seq_length": 1024, "do_lower_case": true}')
    flags = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False, "word_embedding_dimension": 64}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    (folder / "3_Normalize" / "config.json").unlink()
    checkpoint = resolve(folder)
    assert (checkpoint.base, checkpoint.tokenizer) == (transformer, transformer)
    assert (checkpoint.pooling, checkpoint.include_prompt) == ("last", True)
    assert (checkpoint.max_length, checkpoint.lower_case) == (1024, True)
    assert (checkpoint.vector_size, checkpoint.normalize, checkpoint.prompts) == (32, True, {})
    (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 64}')
    assert resolve(folder).pooling == "mean"  # the default when the config names no mode


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 40}),
        ("sentence_bert_config.json", {"max_seq_length": 40, "processor_kwargs": {"model_max_length": 30}}),
        ("sentence_bert_config.json", {"tokenizer_args": {"model_max_length": 30, "use_fast": True}}),
        ("sentence_bert_config.json", {"model_args": {"torch_dtype": "float32"}, "config_args": {"use_cache": False}}),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"padding": True}, "chat_template": {}}}),
        ("tokenizer_config.json", {"model_max_length": 30}),
        ("tokenizer_config.json", {"model_max_length": 10**30}),
        ("tokenizer_config.json", {"model_max_length": 10**30, "truncation_side": "right"}),
    ],
)
def test_texts_are_as_long_as_in_sentence_transformers(save: Save, file: str, settings: dict[str, object]) -> None:
    from sentence_transformers import SentenceTransformer

    folder = save()
    edit_json(folder / file, **settings)
    assert resolve(folder).max_length == SentenceTransformer(str(folder), device="cpu").max_seq_length


def test_the_length_among_the_arguments_for_calling_the_tokenizer_goes_first(save: Save) -> None:
    folder = save(max_seq_length=77)
    edit_json(folder / "sentence_bert_config.json", processing_kwargs={"text": {"max_length": 16, "truncation": True}})
    assert resolve(folder).max_length == 16


def test_a_transformer_module_may_be_an_adapter(save: Save, tiny_llama: Path, tmp_path: Path) -> None:
    folder = save()
    adapter = save_adapter(tiny_llama, tmp_path / "adapter", headed=False)
    (folder / "model.safetensors").unlink()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((adapter / name).read_bytes())
    checkpoint = resolve(folder, adapters=[adapter])
    assert (checkpoint.base, checkpoint.adapters) == (tiny_llama, (folder, adapter))
    assert checkpoint.layout == "sentence-transformers"


def test_dims_beyond_the_vector_are_the_whole_vector(save: Save) -> None:
    assert resolve(save(truncate_dim=100)).dims == 64


def test_a_folder_that_puts_texts_into_a_chat_template_is_refused(save: Save, tiny_llama: Path, tmp_path: Path) -> None:
    base = copy(tiny_llama, tmp_path / "chat")
    (base / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    with pytest.raises(ModelError, match="chat template"):
        resolve(save(base=base))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "is a 'SparseEncoder'"),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}, "has a prompt that is not a string"),
        ("config_sentence_transformers.json", {"prompts": ["query"]}, r"has prompts \['query'\]"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "has truncate_dim 0"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "asks for the task 'fill-mask'"),
        ("sentence_bert_config.json", {"max_seq_length": "77"}, "has max_seq_length '77'"),
        ("sentence_bert_config.json", {"query_length": 16}, "sets query_length to 16, which fastvec does not apply"),
        ("sentence_bert_config.json", {"query_expansion": {"length": 9}}, "sets query_expansion to"),
        ("sentence_bert_config.json", {"tokenizer_args": {"add_eos_token": True}}, "add_eos_token in tokenizer_args"),
        ("sentence_bert_config.json", {"config_kwargs": {"is_causal": False}}, "sets is_causal in config_kwargs"),
        ("sentence_bert_config.json", {"model_args": {"model_max_length": 9}}, "model_max_length in model_args"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"stride": 2}}}, "stride in processing_kwargs"),
        ("sentence_bert_config.json", {"processing_kwargs": {"common": {"a": 1}}}, "sets common in processing_kwargs"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "has a truncation_side other than right"),
        ("1_Pooling/config.json", {"include_prompt": "no"}, "has include_prompt 'no'"),
        ("1_Pooling/config.json", {"pooling_mode": [{}]}, "has pooling mode"),
        ("2_Dense/config.json", {"use_residual": True}, "adds a residual"),
        ("2_Dense/config.json", {"in_features": 60}, "expects 60 dimensions, but receives 64"),
        (
            "2_Dense/config.json",
            {"module_input_name": "token_embeddings"},
            "sets module_input_name to 'token_embeddings'",
        ),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Softmax"}, "Softmax"),
        ("3_Normalize/config.json", {"module_output_name": "other"}, "sets module_output_name to 'other'"),
    ],
)
def test_what_fastvec_does_not_do_the_same_way_is_refused(
    save: Save, file: str, change: dict[str, object], message: str
) -> None:
    folder = save(dense=(32,), normalize=True)
    edit_json(folder / file, **change)
    with pytest.raises(ModelError, match=message):
        resolve(folder)


@pytest.mark.parametrize(
    "order", [["Transformer"], ["Pooling", "Transformer"], ["Transformer", "Pooling", "Normalize", "Dense"], []]
)
def test_modules_in_another_order_are_refused(save: Save, order: list[str]) -> None:
    folder = save(dense=(32,), normalize=True)
    modules = {
        module["type"].rpartition(".")[2]: module for module in json.loads((folder / "modules.json").read_text())
    }
    (folder / "modules.json").write_text(json.dumps([modules[name] for name in order]))
    with pytest.raises(ModelError, match="expected Transformer, Pooling, Dense and Normalize in order"):
        resolve(folder)


def test_a_dense_module_with_a_pickle_is_refused(save: Save) -> None:
    folder = save(dense=(32,))
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle"):
        resolve(folder)
