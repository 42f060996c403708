"""fastvec returns the same vectors for a sentence-transformers folder as sentence-transformers itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from fastvec import Encoder
from tests.helpers.checkpoints import edit_json
from tests.helpers.tiny import SENTENCES, save_decoder

TEXTS = [*SENTENCES, "sea", "a longer one, " * 20, ""]
PROMPTS = {"query": "Instruct: find the like of it\nQuery: ", "document": ""}

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Return a function that saves a decoder and its modules with sentence-transformers and returns the folder."""

    def save(
        model_type: str, *modules: torch.nn.Module, bidirectional: bool, eos: bool = False, **options: Any
    ) -> Path:
        decoder = save_decoder(tmp_path / "decoder", model_type, eos=eos)
        if bidirectional:
            edit_json(decoder / "config.json", is_causal=False)
        transformer = Transformer(str(decoder), max_seq_length=64)
        model = SentenceTransformer(modules=[transformer, *modules], device="cpu", **options)
        model.tokenizer.pad_token = "</s>"
        model.save_pretrained(str(tmp_path / "saved"))
        return tmp_path / "saved"

    return save


def assert_same(folder: Path, texts: list[str] = TEXTS, prompt_name: str | None = None) -> None:
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, prompt_name=prompt_name, batch_size=3)
    vectors = Encoder.from_pretrained(folder, dtype="float32", device="cpu").encode(texts, prompt_name=prompt_name)
    assert np.abs(vectors - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_bidirectional_with_mean_pooling(save: Save) -> None:
    assert_same(save("llama", Pooling(64, pooling_mode="mean"), Normalize(), bidirectional=True))


def test_bidirectional_with_weighted_mean_pooling_and_no_norm(save: Save) -> None:
    assert_same(save("mistral", Pooling(64, pooling_mode="weightedmean"), bidirectional=True))


@pytest.mark.parametrize("prompt_name", [None, "query", "document"])
def test_causal_with_last_token_pooling_prompts_and_eos(save: Save, prompt_name: str | None) -> None:
    pooling = Pooling(64, pooling_mode="lasttoken")
    folder = save("qwen3", pooling, Normalize(), bidirectional=False, eos=True, prompts=PROMPTS)
    assert_same(folder, prompt_name=prompt_name)


def test_a_default_prompt_stands_before_every_text(save: Save) -> None:
    pooling = Pooling(64, pooling_mode="lasttoken")
    assert_same(save("qwen3", pooling, bidirectional=False, prompts=PROMPTS, default_prompt_name="query"))


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("eos", [False, True])
def test_a_prompt_that_is_not_pooled(save: Save, mode: str, eos: bool) -> None:
    pooling = Pooling(64, pooling_mode=mode, include_prompt=False)
    folder = save("llama", pooling, bidirectional=True, eos=eos, prompts=PROMPTS)
    # Without "sea" and "": sentence-transformers counts their only text token, if any, as part of the prompt, and
    # its mean of no tokens is a zero vector
    assert_same(folder, [text for text in TEXTS if len(text) > 3], prompt_name="query")


def test_dense_after_pooling(save: Save) -> None:
    dense = Dense(64, 24, activation_function=torch.nn.Tanh())
    assert_same(save("llama", Pooling(64, pooling_mode="mean"), dense, Normalize(), bidirectional=True))
