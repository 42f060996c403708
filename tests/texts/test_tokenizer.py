from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fastvec.errors import UsageError
from fastvec.texts.tokenized import TokenizedTexts
from fastvec.texts.tokenizer import TextRecipe, TextTokenizer
from tests.helpers.tiny import save_tokenizer

# words of several tokens, characters of several bytes, and whitespace anywhere
TEXTS = st.lists(st.text(alphabet="abc étrain 日1\n<s>", max_size=60), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("plain")
    save_tokenizer(folder)
    return load(folder)


@pytest.fixture(scope="module")
def with_eos(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("eos")
    save_tokenizer(folder, eos=True)
    return load(folder)


def load(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def tokens(tokenizer: PreTrainedTokenizerBase, tokenized: TokenizedTexts, index: int = 0) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenized.sequence(index).tolist())  # type: ignore[return-value]


def pooled(tokenizer: PreTrainedTokenizerBase, tokenized: TokenizedTexts, index: int = 0) -> list[str]:
    begin, end = tokenized.spans[index]
    return tokens(tokenizer, tokenized, index)[begin:end]


@given(texts=TEXTS)
def test_the_ids_are_those_of_transformers(with_eos: PreTrainedTokenizerBase, texts: list[str]) -> None:
    tokenized = TextTokenizer(with_eos, TextRecipe())(texts)
    assert [tokenized.sequence(i).tolist() for i in range(len(texts))] == with_eos(texts)["input_ids"]
    assert tokenized.truncated.sum() == 0


@given(texts=TEXTS)
def test_with_an_instruction_the_ids_are_those_of_the_joined_text(
    with_eos: PreTrainedTokenizerBase, texts: list[str]
) -> None:
    tokenized = TextTokenizer(with_eos, TextRecipe(prefix="find: ", pooled="text"))(texts)
    joined = with_eos(["find: " + text for text in texts])["input_ids"]
    assert [tokenized.sequence(i).tolist() for i in range(len(texts))] == joined


def test_the_text_span_leaves_out_special_tokens_and_the_instruction(with_eos: PreTrainedTokenizerBase) -> None:
    tokenized = TextTokenizer(with_eos, TextRecipe(prefix="1: ", pooled="text"))(["the sea"])
    assert tokens(with_eos, tokenized) == ["<s>", "1", ":", "Ġthe", "Ġsea", "</s>"]
    assert pooled(with_eos, tokenized) == ["Ġthe", "Ġsea"]


def test_a_template_suffix_belongs_to_the_pooled_span_and_survives_truncation(plain: PreTrainedTokenizerBase) -> None:
    recipe = TextRecipe(prefix="(a)", suffix="(b)", max_length=10, pooled="text")
    tokenized = TextTokenizer(plain, recipe)(["12", "12345678"])
    assert pooled(plain, tokenized, 0) == ["1", "2", "(", "b", ")"]
    assert tokens(plain, tokenized, 1) == ["<s>", "(", "a", ")", "1", "2", "3", "(", "b", ")"]
    assert tokenized.truncated.sum() == 1


def test_eos_survives_truncation(with_eos: PreTrainedTokenizerBase) -> None:
    tokenized = TextTokenizer(with_eos, TextRecipe(max_length=4))(["12345"])
    assert tokens(with_eos, tokenized) == ["<s>", "1", "2", "</s>"]
    assert (tokenized.truncated.tolist(), tokenized.spans.tolist()) == ([True], [[0, 4]])


def test_a_limit_of_the_text_alone_leaves_the_instruction(plain: PreTrainedTokenizerBase) -> None:
    tokenized = TextTokenizer(plain, TextRecipe(prefix="12", text_max_length=2, pooled="text"))(["3456"])
    assert tokens(plain, tokenized) == ["<s>", "1", "2", "3", "4"]
    assert pooled(plain, tokenized) == ["3", "4"]


@pytest.mark.parametrize("pooled", ["text", "sequence"])
@pytest.mark.parametrize("prefix", ["", "the train "])
@example(words=["x"] * 10 + ["train"])  # the shortest valid cut would end inside a token
@given(words=st.lists(st.sampled_from(["train", "harbour", "sea", "1024", "日本語", "é", " "]), max_size=60))
def test_cutting_a_long_text_first_changes_no_token(
    plain: PreTrainedTokenizerBase, prefix: str, pooled: Literal["text", "sequence"], words: list[str]
) -> None:
    text = "".join(words) + " ".join(words)
    recipe = TextRecipe(prefix=prefix, max_length=12, pooled=pooled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fastvec.texts.tokenizer.CHARACTERS_PER_TOKEN", 1
        )  # so that most texts are cut, and most first cuts are too short
        tokenized = TextTokenizer(plain, recipe)([text])
    assert tokenized.sequence(0).tolist() == plain(prefix + text)["input_ids"][:12]


@given(texts=TEXTS, prefix=st.sampled_from(["a: ", "étrain", "<s> "]), max_length=st.integers(12, 30))
def test_a_pooled_prefix_needs_no_offsets(
    with_eos: PreTrainedTokenizerBase, texts: list[str], prefix: str, max_length: int
) -> None:
    recipe = TextRecipe(prefix=prefix, max_length=max_length)
    found = TextTokenizer(with_eos, recipe)(texts)
    expected = TextTokenizer(with_eos, replace(recipe, text_max_length=1000))(texts)  # which needs them
    for name in ("ids", "offsets", "spans", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_text_without_end_is_not_tokenised_whole(plain: PreTrainedTokenizerBase) -> None:
    tokenizer = TextTokenizer(plain, TextRecipe(max_length=64))
    [encoding], *_ = tokenizer._encode(["1 " * 100_000])
    assert 64 < len(encoding) < 2000


def test_an_empty_text_is_its_special_tokens(with_eos: PreTrainedTokenizerBase) -> None:
    tokenized = TextTokenizer(with_eos, TextRecipe(pooled="text"))([""])
    assert pooled(with_eos, tokenized) == tokens(with_eos, tokenized) == ["<s>", "</s>"]


def test_an_empty_text_without_special_tokens_still_has_a_token(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, bos=False)
    tokenizer = load(tmp_path)
    tokenized = TextTokenizer(tokenizer, TextRecipe(pooled="text"))(["", "1"])
    assert [tokens(tokenizer, tokenized, i) for i in (0, 1)] == [["<s>"], ["1"]]


def test_white_space_at_the_end_can_be_dropped(plain: PreTrainedTokenizerBase) -> None:
    tokenized = TextTokenizer(plain, TextRecipe(strip_end=True))([" the sea \n"])
    assert tokenized.sequence(0).tolist() == plain(" the sea")["input_ids"]


def test_an_instruction_that_leaves_no_room_is_refused(plain: PreTrainedTokenizerBase) -> None:
    with pytest.raises(
        UsageError, match="take 6 tokens, leaving none for a text within max_length 6: shorten the instruction"
    ):
        TextTokenizer(plain, TextRecipe(prefix="12345", max_length=6))


def test_no_texts_give_no_tokens(plain: PreTrainedTokenizerBase) -> None:
    tokenized = TextTokenizer(plain, TextRecipe())([])
    shapes: Any = (len(tokenized), tokenized.ids.shape, tokenized.spans.shape, tokenized.offsets.tolist())
    assert shapes == (0, (0,), (0, 2), [0])


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), data=st.data())
def test_selected_texts_are_those_of_the_rows(lengths: list[int], data: st.DataObject) -> None:
    offsets = np.append(0, np.cumsum(lengths))
    spans = np.stack([np.zeros(len(lengths), dtype=np.int64), np.array(lengths)], axis=1)
    texts = TokenizedTexts(
        ids=np.arange(offsets[-1], dtype=np.int32),
        offsets=offsets,
        spans=spans,
        truncated=np.zeros(len(spans), dtype=bool),
    )
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=12))
    selected = texts.select(np.array(rows, dtype=np.int64))
    assert [selected.sequence(i).tolist() for i in range(len(rows))] == [texts.sequence(row).tolist() for row in rows]
    assert selected.spans.tolist() == [spans[row].tolist() for row in rows]
    assert selected.ids.dtype == np.int32
