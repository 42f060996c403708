"""The recipe for the bundled model, from articles to the finished folder, with a tiny teacher and a few steps."""

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

import fastvec
from fastvec import Encoder
from recipes.bundled import everyday, finish, pairs, scenes, static, teacher, texts, tokenizer, topics
from recipes.bundled.templates import Templates
from tests import ARTICLES
from tests.helpers.tiny import save_decoder

SIZES = "--width 64 --heads 2 --mlp 64 --batch-size 64 --epochs 4 --pair-batch 32"
EVERYDAY = "--scenes 200 --headlines 100 --requests 100"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, tokenizer, teacher's vectors and static starting model."""
    folder = tmp_path_factory.mktemp("bundled")
    save_decoder(folder / "decoder", "llama", bos=False)
    fastvec.adapt(
        objective="simcse",
        model=folder / "decoder",
        data=[str(ARTICLES)],
        column="title",
        output=folder / "teacher",
        steps=1,
        batch_size=4,
        max_length=16,
        dtype="float32",
        device="cpu",
        merge=True,
    )
    run(everyday, f"-o {folder}/everyday.parquet {EVERYDAY}")
    sources = f"--texts {ARTICLES}:title --texts {folder}/everyday.parquet:text --named 200 --passages 40"
    run(texts, f"-o {folder}/texts.parquet --articles {ARTICLES} {sources}")
    rows = [
        {"question": f"what is {n}?", "answer": f"{n} is a number, and it is followed by {n + 1}."} for n in range(90)
    ]
    pq.write_table(
        pa.Table.from_pylist([*rows, {"question": "what is it?", "answer": "short"}]), folder / "asked.parquet"
    )
    run(
        pairs,
        f"-o {folder}/pairs.parquet --articles {ARTICLES} --pairs {folder}/asked.parquet:question:answer --most 50",
    )
    run(tokenizer, f"{folder}/texts.parquet -o {folder}/tokenizer --vocabulary 900 --pieces 400")
    run(teacher, f"{folder}/texts.parquet -o {folder}/vectors --model {folder}/teacher")
    arguments = f"{folder}/vectors -o {folder}/static --tokenizer {folder}/tokenizer --teacher {folder}/teacher"
    run(static, f"{arguments} --pairs {folder}/pairs.parquet {SIZES}")
    run(topics, f"{folder}/vectors -o {folder}/topics.parquet --size 32")
    return folder


@pytest.fixture(scope="module")
def finished(made: Path) -> Path:
    fastvec.adapt(
        objective="distil",
        model=made / "static",
        data=[made / "topics.parquet"],
        output=made / "distilled",
        steps=2,
        batch_size=16,
        full=True,
        dtype="float32",
        device="cpu",
    )
    (made / "card.md").write_text("# A card\n")
    run(finish, f"{made}/distilled --texts {made}/texts.parquet -o {made}/finished --card {made}/card.md")
    return made / "finished"


def run(recipe: object, arguments: str) -> None:
    recipe.main(arguments.split(), standalone_mode=False)  # type: ignore[attr-defined]


def test_texts_come_once_shuffled_and_of_every_kind(made: Path) -> None:
    found = pq.read_table(made / "texts.parquet")["text"].to_pylist()
    titles = set(pq.read_table(str(ARTICLES))["title"].to_pylist())
    plain = set(pq.read_table(made / "everyday.parquet")["text"].to_pylist())
    assert len(found) == len(set(found)) > 1000
    assert len(plain) == 400
    assert titles | plain <= set(found)
    places = [place for place, text in enumerate(found) if text in titles]
    assert min(places) < len(found) / 10 < 9 * len(found) / 10 < max(places)
    of_articles = [text for text in found if text not in titles | plain]
    named = [text for text in of_articles if texts.NAME.search(text)]
    assert 140 <= len(named) <= 240  # two draws of 100 with a name or a number, and 40 long passages
    assert sum(400 <= len(text) <= 800 for text in named) >= 40
    assert any(". " in text and 220 < len(text) < 400 for text in of_articles)  # passages
    assert any(text[0].islower() for text in of_articles)  # clauses


def test_topics_are_runs_of_texts_near_each_other(made: Path) -> None:
    before, after = pq.read_table(made / "vectors"), pq.read_table(made / "topics.parquet")
    assert before.schema == after.schema
    assert before["text"] != after["text"]
    assert before.sort_by("text") == after.sort_by("text")
    near, far = (nearness(table["embedding"].combine_chunks()) for table in (after, before))
    assert near > far + 0.05


def nearness(vectors: pa.FixedSizeListArray) -> float:
    """Return the mean cosine between a vector and the next."""
    rows = vectors.flatten().to_numpy().reshape(len(vectors), -1).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return float((rows[1:] * rows[:-1]).sum(axis=1).mean())


def test_rare_words_are_those_of_few_texts() -> None:
    common = [f"The cat sat in room {room}." for room in range(200)]
    rare = [f"In room {room} a marmoset sat." for room in range(20)]
    words = texts.rare_words([*common, *rare, "A solitary typpo of 1 text."])
    assert words == {"marmoset"}  # neither words of nearly all texts nor words of one text


def test_long_passages_are_whole_lines_of_an_article() -> None:
    found = list(texts.long_passages((str(ARTICLES),), np.random.default_rng(0)))
    assert all(400 <= len(text) <= 800 for text in found)
    flat = [
        " ".join(line for line in text.splitlines() if line)
        for text in pq.read_table(str(ARTICLES))["text"].to_pylist()
    ]
    inside = sum(any(passage in text for text in flat) for passage in found)
    assert inside > 0.75 * len(found) > 30  # the others span an empty line


def test_pairs_are_of_one_article(made: Path) -> None:
    found = pq.read_table(made / "pairs.parquet").to_pylist()
    articles = {row["title"]: row["text"] for row in pq.read_table(str(ARTICLES)).to_pylist()}
    titled = [pair for pair in found if pair["query"] in articles]
    assert len(titled) > 150
    assert all(pair["passage"] in articles[pair["query"]] for pair in titled)
    asked = [pair for pair in found if pair["query"].startswith("what is ")]
    assert len(asked) == 50
    assert all(pair["passage"].startswith(pair["query"].split()[2].rstrip("?")) for pair in asked)
    sentences = [pair for pair in found if pair["query"] not in articles and pair not in asked]
    assert len(sentences) > 10
    for pair in sentences:
        start = pair["passage"][:30]
        assert any(pair["query"][:30] in text and start in text for text in articles.values())
    assert all(len(pair["passage"]) <= 800 for pair in found)


def test_everyday_sentences_are_of_three_kinds_and_come_again(made: Path, tmp_path: Path) -> None:
    found = pq.read_table(made / "everyday.parquet")["text"].to_pylist()
    assert len(set(found)) == len(found) == 400
    assert sum("?" in text for text in found[300:]) > 20  # requests
    assert sum(text.lower().startswith(("a ", "an ", "the ")) for text in found[:200]) > 60  # scenes
    assert not any(slot in text for text in found for slot in "{}|")
    run(everyday, f"-o {tmp_path}/again.parquet {EVERYDAY}")
    assert pq.read_table(tmp_path / "again.parquet")["text"].to_pylist() == found
    run(everyday, f"-o {tmp_path}/other.parquet {EVERYDAY} --seed 1")
    assert len(set(pq.read_table(tmp_path / "other.parquet")["text"].to_pylist()) & set(found)) < 100


def test_a_scene_is_denied_asked_and_told_in_the_passive() -> None:
    verb = ("kick", "kicks", "kicking", "kicked", "kicked")
    told = scenes.Scene(scenes.Noun("man"), verb, scenes.Noun("ball", number="two"), "in the park")
    assert " ".join(told.passive().split()) == "two balls are being kicked by a man in the park"
    before = replace(told, tense="did")
    assert " ".join(before.passive().split()) == "two balls were kicked by a man in the park"
    denials = {" ".join(told.denied(random.Random(seed)).split()) for seed in range(99)}
    assert denials == {
        "a man is not kicking two balls in the park",
        "a man isn't kicking two balls in the park",
        "there is no man kicking two balls in the park",
        "nobody is kicking two balls in the park",
        "a man does not kick two balls in the park",
        "a man did not kick two balls in the park",
        "a man never kicked two balls in the park",
        "a man is kicking two balls but not in the park",
    }
    questions = {" ".join(told.asked(random.Random(seed)).split()) for seed in range(99)}
    assert {"is a man kicking two balls in the park ?", "where did a man kick two balls?"} < questions


def test_headlines_are_grammatical_after_was_and_not() -> None:
    grammar, chance = everyday.GRAMMARS["headlines"], random.Random(0)
    found = [text for _ in range(3000) for text in grammar(chance)]
    after = [word for text in found for word in re.findall(r" (?:was|not) (\w+)", text)]
    assert len(after) > 100
    assert not {"wins", "leaves", "retires", "goes"}.intersection(after)
    assert any(text.endswith("wins award") for text in found)
    assert not any("people" in text and re.search("dozens|scores|hundreds", text) for text in found)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("a" * 800, 800),
        ("a" * 900, 800),
        ("a" * 799 + " b", 799),
        ("a" * 795 + " bbbb bbbb", 800),
        ("word " * 200, 799),
    ],
)
def test_texts_are_cut_after_a_whole_word(text: str, length: int) -> None:
    assert texts.cut(text) == text[:length]


def test_a_template_keeps_its_words_and_exchanges_one(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(
        """
[words]
fruit = "apple|pear|fig"
act = "sell/sold|buy/bought"
[[families]]
weight = 1
templates = ["a {fruit} and a {fruit2} we {act}, they {act.1}"]
"""
    )
    shape = re.compile(r"(a pear|a fig|an apple) and (a pear|a fig|an apple) we (sell, they sold|buy, they bought)")
    exchanged = 0
    for seed in range(20):
        first, second, *others = (
            shape.fullmatch(text) for text in Templates(tmp_path / "one.toml").texts(random.Random(seed))
        )
        assert first
        assert second
        assert first.groups() == second.groups()
        before = second.groups()
        for other in others:
            assert other
            changes = sum(old != new for old, new in zip(before, other.groups(), strict=True))
            assert changes <= 1
            exchanged += changes
            before = other.groups()
    assert exchanged > 10  # of 40, of which a third draw the word that was there


def test_a_word_is_one_token_wherever_it_stands(made: Path) -> None:
    found = AutoTokenizer.from_pretrained(made / "tokenizer")
    assert found("the")["input_ids"] == found("and The")["input_ids"][-1:]
    assert "the" in found.decode(found("THE")["input_ids"])
    assert found.num_special_tokens_to_add() == 0
    assert found.tokenize("the-the (the)").count(found.tokenize("the")[0]) == 3
    assert len(found) == 900
    words = [
        token[1:]
        for token, place in found.get_vocab().items()
        if place >= 400 and token[0] == "Ġ" and token[1:].isascii()
    ]
    assert len(words) > 300
    assert all(len(found.tokenize(word)) == 1 for word in words)
    text = "naïve 日本 \U0001f600"
    assert str(found.decode(found(text)["input_ids"])).strip() == text


def test_vectors_are_the_teachers_and_a_part_that_is_there_stays(made: Path) -> None:
    (part,) = sorted((made / "vectors").iterdir())
    table, before = pq.read_table(part), part.stat().st_mtime_ns
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 64)
    expected = SentenceTransformer(str(made / "teacher")).encode(table["text"].to_pylist()[:20])
    given = np.stack(table["embedding"].to_numpy()[:20])
    assert (expected * given).sum(axis=1).min() > 0.99
    run(teacher, f"{made}/texts.parquet -o {made}/vectors --model {made}/teacher")
    assert part.stat().st_mtime_ns == before


def test_the_static_start_is_the_mean_of_its_tokens_and_knows_what_the_teacher_says(made: Path) -> None:
    table = pq.read_table(made / "vectors")
    given = np.stack(table["embedding"].to_numpy()).astype(np.float32)
    encoder = Encoder.from_pretrained(made / "static", dtype="float32", device="cpu")
    vectors = encoder.encode(table["text"].to_pylist())
    cosines = (vectors * given).sum(axis=1) / np.linalg.norm(given, axis=1)
    chance = given.mean(axis=0) / np.linalg.norm(given.mean(axis=0))
    assert cosines.mean() > (given @ chance / np.linalg.norm(given, axis=1)).mean() + 0.01
    forward, backward = encoder.encode(["the first town", "town first the"])
    assert forward @ backward > 0.999


def test_the_finished_folder_holds_nothing_of_its_making_and_has_the_cosines_of_what_was_distilled(
    made: Path, finished: Path
) -> None:
    before = load_file(made / "distilled/model.safetensors")
    for name, weight in load_file(finished / "model.safetensors").items():
        small = before[name].to(torch.float8_e4m3fn if weight.ndim == 2 else torch.float16)
        assert weight.dtype == small.dtype
        assert torch.equal(weight.float(), small.float())
    texts = pq.read_table(made / "texts.parquet")["text"].to_pylist()[:300]
    found = Encoder.from_pretrained(finished, dtype="float32", device="cpu").encode(texts)
    near = Encoder.from_pretrained(made / "distilled", dtype="float32", device="cpu").encode(texts)
    cosines = near @ near.T  # only close: weights of 8 bits
    assert np.abs(found @ found.T - cosines).mean() < cosines.std() / 5
    sizes = np.square(found).sum(axis=0)
    assert sizes[:8].sum() > 0.9 * np.sort(sizes)[-8:].sum()  # the largest components come first
    assert np.abs(found.T @ found - np.diag(sizes))[:8, :8].max() < 0.05 * sizes[0]  # and are uncorrelated
    other = SentenceTransformer(str(finished), device="cpu", model_kwargs={"dtype": torch.float32})
    np.testing.assert_allclose(other.encode(texts[:9]), found[:9], atol=1e-5)
    for path in finished.rglob("*.json"):
        assert str(made) not in path.read_text()
