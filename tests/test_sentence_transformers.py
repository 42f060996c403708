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


NAMED = {"query": "Query: ", "passage": "Passage: ", "corpus": "Corpus: ", "document": "Document: ", "other": "Other: "}


@pytest.mark.parametrize("default", [None, "other"])
@pytest.mark.parametrize("names", [(), ("query",), ("passage", "corpus"), ("query", "document", "passage")])
def test_queries_and_documents_have_the_prompts_of_their_names(
    save: Save, names: tuple[str, ...], default: str | None
) -> None:
    prompts = {name: NAMED[name] for name in (*names, "other")}
    folder = save("llama", Pooling(64, "mean"), bidirectional=True, prompts=prompts, default_prompt_name=default)
    # sentence-transformers saves empty prompts `query` and `document`; other tools do not
    edit_json(folder / "config_sentence_transformers.json", prompts=prompts)
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = Encoder.from_pretrained(folder, dtype="float32", device="cpu")

    pairs = [
        (theirs.encode(SENTENCES), ours.encode(SENTENCES)),
        (theirs.encode_query(SENTENCES), ours.encode_query(SENTENCES)),
        (theirs.encode_document(SENTENCES), ours.encode_document(SENTENCES)),
        (theirs.encode_query(SENTENCES, prompt_name="other"), ours.encode_query(SENTENCES, prompt_name="other")),
        (theirs.encode_document(SENTENCES, prompt="Find: "), ours.encode_document(SENTENCES, instruction="Find: ")),
        (theirs.encode_query(SENTENCES[0]), ours.encode_query(SENTENCES[0])),
    ]
    for expected, vectors in pairs:
        assert np.abs(vectors - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_a_folder_of_another_layout_has_no_prompts(tiny_llama: Path) -> None:
    encoder = Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu")
    expected = encoder.encode(SENTENCES)
    assert np.array_equal(encoder.encode_query(SENTENCES), expected)
    assert np.array_equal(encoder.encode_document(SENTENCES), expected)


@pytest.mark.parametrize("named", ["cosine", "dot", "euclidean", "manhattan", "maxsim", None])
def test_similarity_is_by_the_function_that_the_checkpoint_names(save: Save, named: str | None) -> None:
    folder = save("llama", Pooling(64, "mean"), bidirectional=True)
    edit_json(folder / "config_sentence_transformers.json", similarity_fn_name=named)
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = Encoder.from_pretrained(folder, dtype="float32", device="cpu")
    vectors = ours.encode(SENTENCES)

    expected = theirs.similarity(vectors, vectors[1:3]).numpy()
    assert np.abs(ours.similarity(vectors, vectors[1:3]) - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    assert ours.similarity(vectors[0], vectors[1]).shape == (1, 1)
