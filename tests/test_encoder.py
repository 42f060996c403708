import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from fastvec.encoder import Encoder, SubmittedChunk
from fastvec.errors import ModelError, UsageError
from fastvec.forward import Forward
from fastvec.settings import resolve_settings
from fastvec.texts.packing import Packed
from fastvec.texts.tokenized import TokenizedTexts
from tests.helpers.checkpoints import break_last_token
from tests.helpers.tiny import SENTENCES, save_decoder

TEXTS = [*SENTENCES, "sea", "a longer one, " * 20]
Vectors = npt.NDArray[np.float32]


def one_at_a_time(
    folder: Path, texts: list[str], pooling: str, instruction: str | None, *, causal: bool = False
) -> Vectors:
    """LLM2Vec's vectors from first principles: eager transformers, one sequence at a time, pooled over the text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    model.config.is_causal = causal
    prefix = "" if instruction is None else instruction.strip() + " "
    vectors = []
    for text in texts:
        encoded = tokenizer(prefix + text, return_offsets_mapping=True, truncation=True, max_length=512)
        ids = torch.tensor([encoded["input_ids"]])
        with torch.inference_mode():
            hidden = model(input_ids=ids, use_cache=False).last_hidden_state[0]
        own = hidden[[end > len(prefix) for _, end in encoded["offset_mapping"]]]
        weights = torch.arange(1, len(own) + 1, dtype=torch.float32)[:, None]
        vector = {
            "mean": own.mean(0),
            "weighted_mean": (own * weights).sum(0) / weights.sum(),
            "last": hidden[-1],
            "first": hidden[0],
        }[pooling]
        vectors.append(vector.numpy())
    return np.stack(vectors)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = save_decoder(tmp_path_factory.mktemp(model_type), model_type)
        return made[model_type]

    return folder


@pytest.mark.parametrize("instruction", [None, "Find the like of it: "])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last", "first"])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma"])
def test_vectors_are_those_of_one_sequence_at_a_time(
    folders: Callable[[str], Path], model_type: str, pooling: str, instruction: str | None
) -> None:
    folder = folders(model_type)
    encoder = Encoder.from_pretrained(folder, dtype="float32", device="cpu", pooling=pooling, normalize=False)
    expected = one_at_a_time(folder, TEXTS, pooling, instruction)
    assert np.abs(encoder.encode(TEXTS, instruction=instruction) - expected).max() <= 1e-5 * np.abs(expected).max()


def save_llm2vec(folder: Path, tiny_llama: Path, **settings: object) -> Path:
    shutil.copytree(tiny_llama, folder)
    (folder / "llm2vec_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last_token"])
def test_an_llm2vec_folder_pools_as_it_says_and_is_not_normalized(
    tmp_path: Path, tiny_llama: Path, pooling: str
) -> None:
    folder = save_llm2vec(tmp_path / "llm2vec", tiny_llama, pooling_mode=pooling, skip_instruction=True)
    expected = one_at_a_time(tiny_llama, TEXTS, pooling.removesuffix("_token"), "Find it:")
    vectors = Encoder.from_pretrained(folder, dtype="float32", device="cpu").encode(TEXTS, instruction="Find it:")
    assert np.abs(vectors - expected).max() <= 1e-5 * np.abs(expected).max()


def test_an_llm2vec_folder_that_pools_eos_puts_it_behind_every_text(tmp_path: Path, tiny_llama: Path) -> None:
    folder = save_llm2vec(tmp_path / "llm2vec", tiny_llama, pooling_mode="eos_token")
    expected = one_at_a_time(tiny_llama, [text.rstrip() + " </s>" for text in TEXTS], "last", None)
    vectors = Encoder.from_pretrained(folder, dtype="float32", device="cpu").encode(TEXTS)
    assert np.abs(vectors - expected).max() <= 1e-5 * np.abs(expected).max()


def test_an_llm2vec_document_keeps_its_first_tokens(tmp_path: Path, tiny_llama: Path) -> None:
    folder = save_llm2vec(tmp_path / "llm2vec", tiny_llama, pooling_mode="mean", doc_max_length=3)
    encoder = Encoder.from_pretrained(folder, dtype="float32", device="cpu")
    assert np.abs(encoder.encode(["1234567"]) - encoder.encode(["123"])).max() < 1e-6


def test_causal_when_asked_for(tiny_llama: Path) -> None:
    encoder = Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu", bidirectional=False, normalize=False)
    expected = one_at_a_time(tiny_llama, TEXTS, "mean", None, causal=True)
    assert np.abs(encoder.encode(TEXTS) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("others", [[], ["a"] * 50, ["of flour and salt " * 60] * 5], ids=["alone", "short", "long"])
def test_a_vector_does_not_depend_on_its_neighbours(encoder: Encoder, others: list[str]) -> None:
    among = encoder.encode([*others, SENTENCES[0], *others])[len(others)]
    assert np.abs(among - encoder.encode([SENTENCES[0]])[0]).max() <= 1e-5


def test_a_bare_decoder_gives_vectors_of_length_one(encoder: Encoder) -> None:
    assert np.abs(np.linalg.norm(encoder.encode(TEXTS), axis=1) - 1).max() < 1e-6


def test_dims_truncate_before_the_norm(tiny_llama: Path, encoder: Encoder) -> None:
    short = Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu", dims=16).encode(TEXTS)
    whole = encoder.encode(TEXTS)[:, :16]
    assert np.abs(short - whole / np.linalg.norm(whole, axis=1, keepdims=True)).max() < 1e-6


def test_bfloat16_is_close_to_float32(tiny_llama: Path, encoder: Encoder) -> None:
    low = Encoder.from_pretrained(tiny_llama, dtype="bfloat16", device="cpu").encode(TEXTS)
    assert (low * encoder.encode(TEXTS)).sum(axis=1).min() > 0.999


def test_no_texts_give_no_vectors(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, 64)


def test_none_is_not_a_text(encoder: Encoder) -> None:
    with pytest.raises(UsageError, match="text 1 is a NoneType, not a string"):
        encoder.encode(["a", None])


def test_a_lone_surrogate_reads_as_the_replacement_character(encoder: Encoder) -> None:
    assert (encoder.encode(["a\ud800b"]) == encoder.encode(["a\ufffdb"])).all()


def test_a_text_that_overflows_is_done_again_alone_in_float32(
    tiny_llama: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Encoder.from_pretrained(tiny_llama, dtype="float16", device="cpu")
    forward = Forward.__call__

    def overflowing(self: Forward, packed: Packed) -> torch.Tensor:
        vectors = forward(self, packed)
        narrow = next(self._decoder.model.parameters()).dtype == torch.float16
        return torch.where(narrow & (torch.arange(len(vectors))[:, None] == 0), torch.inf, vectors)

    monkeypatch.setattr(Forward, "__call__", overflowing)
    vectors = half.encode(TEXTS)

    longest = max(range(len(TEXTS)), key=lambda row: len(TEXTS[row]))  # the first in its batch
    assert np.abs(vectors[longest] - encoder.encode([TEXTS[longest]])[0]).max() < 1e-3
    assert (vectors * encoder.encode(TEXTS)).sum(axis=1).min() > 0.999
    assert {parameter.dtype for parameter in half._forward._decoder.model.parameters()} == {torch.float16}


def test_texts_that_overflow_are_done_again_in_one_conversion(
    tiny_llama: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Encoder.from_pretrained(tiny_llama, dtype="float16", device="cpu")
    forward, conversion, conversions = Forward.__call__, Forward.in_float32, []

    def overflowing(self: Forward, packed: Packed) -> torch.Tensor:
        narrow = next(self._decoder.model.parameters()).dtype == torch.float16
        return forward(self, packed) * (torch.inf if narrow else 1)

    def counted(self: Forward) -> Any:
        conversions.append(self)
        return conversion(self)

    monkeypatch.setattr(Forward, "__call__", overflowing)
    monkeypatch.setattr(Forward, "in_float32", counted)
    assert np.abs(half.encode(TEXTS) - encoder.encode(TEXTS)).max() < 1e-3
    assert len(conversions) == 1
    conversions.clear()
    monkeypatch.setattr(Forward, "__call__", lambda self, packed: forward(self, packed) * torch.nan)
    with pytest.raises(ModelError, match="non_finite_vector"):
        encoder.encode(TEXTS)
    assert not conversions  # float32 is what it was computed in


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": "512"}, "max_length is a str: expected a whole number"),
        ({"dims": 64.0}, "dims is a float: expected a whole number"),
        ({"model": 5}, "the model is a int: give a folder or a hub id"),
    ],
)
def test_an_option_of_another_type_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Encoder.from_pretrained(**options)


def test_a_text_that_overflows_fails_where_float32_finds_no_memory(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Encoder.from_pretrained(tiny_llama, dtype="float16", device="cpu")
    forward = Forward.__call__

    def small_device(self: Forward, packed: Packed) -> torch.Tensor:
        if next(self._decoder.model.parameters()).dtype == torch.float32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, packed) * torch.where(torch.arange(len(packed.spans)) == 0, torch.inf, 1)[:, None]

    monkeypatch.setattr(Forward, "__call__", small_device)
    encoded = half.encode_tokens(half.tokenizer()(["a sea", "a longer sea"]))

    assert encoded.failed == {1: "non_finite_vector"}
    assert {parameter.dtype for parameter in half._forward._decoder.model.parameters()} == {torch.float16}


def test_a_device_without_any_memory_left_is_one_line(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu")

    def full(self: Encoder, texts: TokenizedTexts, between_batches: Callable[[], None]) -> SubmittedChunk:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Encoder, "_begin", full)
    with pytest.raises(ModelError, match="cpu has too little memory left beside the model"):
        encoder.encode(TEXTS)


def test_a_text_without_a_finite_vector_fails_alone(tmp_path: Path) -> None:
    folder = break_last_token(save_decoder(tmp_path, "llama"), "5")
    encoder = Encoder.from_pretrained(folder, dtype="float32", device="cpu")

    encoded = encoder.encode_tokens(encoder.tokenizer()(["one:1", "one:5", "one:2"]))

    assert encoded.failed == {1: "non_finite_vector"}
    assert (encoded.vectors[[0, 2]] == encoder.encode(["one:1", "one:2"])).all()
    with pytest.raises(ModelError, match="text 1 has no vector"):
        encoder.encode(["one:1", "one:5"])


def test_out_of_memory_halves_the_budget_and_only_a_text_too_large_alone_fails(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu")
    expected = encoder.encode(TEXTS)
    forward, room = Forward.__call__, 40

    def small_device(self: Forward, packed: Packed) -> torch.Tensor:
        if len(packed.token_ids) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, packed)

    monkeypatch.setattr(Forward, "__call__", small_device)
    texts = encoder.tokenizer()(TEXTS)
    encoded = encoder.encode_tokens(texts)

    assert encoder.batch_tokens <= room
    assert encoded.failed == {len(TEXTS) - 1: "out_of_memory"}
    assert np.abs(encoded.vectors[:-1] - expected[:-1]).max() < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_given_batches_without_being_waited_for(tiny_llama: Path) -> None:
    encoder = Encoder.from_pretrained(tiny_llama, device="cuda")
    texts = encoder.tokenizer()(TEXTS)
    expected = encoder.encode_tokens(texts)  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        begun = encoder.begin(texts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.array_equal(encoder.finish(begun).vectors, expected.vectors)


def test_what_is_asked_between_batches_can_end_it(encoder: Encoder) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.encode_tokens(encoder.tokenizer()(TEXTS), stop)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 65}, "dims 65 is out of range: the minimum is 1, the maximum 64, the dimensions of the model"),
        (
            {"max_length": 513},
            "max_length 513 is out of range: the minimum is 1, the maximum 512, the positions of the model",
        ),
        ({"pooling": "max"}, "pooling 'max' is not known: choose mean, weighted_mean, last, first"),
        ({"dtype": "int4"}, "dtype 'int4' is not known"),
        ({"device": "tpu"}, "device 'tpu' is not known"),
        ({"quantize": "int4"}, "quantize 'int4' is not known: choose int8, fp8"),
        ({"quantize": "fp8", "device": "cpu"}, "quantize fp8 needs an NVIDIA GPU .* and the device is cpu"),
    ],
)
def test_a_choice_that_cannot_be_met_is_refused(tiny_llama: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_settings(tiny_llama, **options)  # type: ignore[arg-type]


def test_an_instruction_and_a_prompt_name_exclude_each_other(encoder: Encoder) -> None:
    with pytest.raises(UsageError, match="choose one"):
        encoder.encode(["a"], instruction="b", prompt_name="query")


def test_an_unknown_prompt_name_lists_the_known_ones(encoder: Encoder) -> None:
    with pytest.raises(UsageError, match="no prompt named 'query': it has none"):
        encoder.encode(["a"], prompt_name="query")
