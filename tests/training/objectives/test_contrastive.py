from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastvec.texts.packing import Packed, pack
from fastvec.training.objectives.contrastive import ContrastTask, Group
from fastvec.training.objectives.readout import Readout
from fastvec.training.objectives.task import Batch
from fastvec_kernels import pool
from tests.helpers.tiny import SENTENCES
from tests.training.steps import PlainPass, assert_same_gradients, chunk_of, gradients, headed_model, text_tokenizer

QUERIES = ["whales?", "trains?", None, "bread?", " ", "stars?", "whales?"]
ANSWERS = [*SENTENCES[:3], None, *SENTENCES[:3]]
HARD = [None, "No train at all.", "x", "y", "z", "Another star.", None]


def task(folder: Path, *, at_once: int | None = None, pairs: bool = False, temperature: float = 0.5) -> ContrastTask:
    recipe = {"max_length": 24, "pooled": "text"}
    return ContrastTask(
        text_tokenizer(folder, prefix="Find: ", **recipe) if pairs else text_tokenizer(folder, **recipe),
        text_tokenizer(folder, **recipe),
        positive="answer" if pairs else None,
        negatives=["hard"] if pairs else [],
        readout=Readout("mean"),
        temperature=temperature,
        at_once=at_once,
    )


def groups(folder: Path, pairs: bool) -> list[Group]:
    if not pairs:
        return task(folder).examples_of(chunk_of([*SENTENCES, "", SENTENCES[0]]), np.ones(7, dtype=bool))
    chunk = chunk_of(QUERIES, answer=ANSWERS, hard=HARD)
    return task(folder, pairs=True).examples_of(chunk, np.ones(7, dtype=bool))


def batch_of(examples: list[Group], rank: int = 0, ranks: int = 1) -> Batch[Group]:
    return Batch(step=0, examples=examples, rank=rank, ranks=ranks)


def test_rows_without_a_query_or_an_answer_are_left_out_and_a_negative_may_be_missing(tiny_llama: Path) -> None:
    found = groups(tiny_llama, pairs=True)
    assert [len(group.documents) for group in found] == [1, 2, 2, 1]
    query = found[0].query
    prefixed = text_tokenizer(tiny_llama)(["Find: whales?"])
    assert query.ids.tolist() == prefixed.ids.tolist()
    assert 1 < query.span[0] < query.span[1] == len(query.ids)  # the span excludes BOS and instruction
    assert found[0].query.key == found[3].query.key != found[1].query.key
    admitted = np.array([False, True, True, True, True, False, False])
    assert len(task(tiny_llama, pairs=True).examples_of(chunk_of(QUERIES, answer=ANSWERS, hard=HARD), admitted)) == 1


def naive_simcse(examples: list[Group], model: PlainPass) -> torch.Tensor:
    """SimCSE one text at a time, with torch's cross entropy. The sixth text copies the first: not its negative."""

    def vector(number: int, copy: int) -> torch.Tensor:
        text = examples[number].query
        packed = pack([text.ids], np.array([text.span]))
        return pool(model.forward(packed, [2 * number + copy]), packed.spans, "mean", normalize=False)[0]

    n = len(examples)
    queries, documents = (F.normalize(torch.stack([vector(i, copy) for i in range(n)]), dim=-1) for copy in (0, 1))
    scores = 2 * queries @ documents.T
    copies = torch.zeros(n, n, dtype=torch.bool)
    copies[0, n - 1] = copies[n - 1, 0] = True
    return F.cross_entropy(scores.masked_fill(copies, -torch.inf), torch.arange(n))


@pytest.mark.parametrize("at_once", [None, 5, 1])
def test_simcse_in_any_parts_has_the_gradients_of_one_text_at_a_time(tiny_llama: Path, at_once: int | None) -> None:
    examples = groups(tiny_llama, pairs=False)
    assert len(examples) == 6
    model = PlainPass(headed_model(tiny_llama).model, attention_dropout=0.3)
    loss = task(tiny_llama, at_once=at_once).learn(batch_of(examples), model)
    found = gradients(model.model)
    assert max(model.forwards) == (12 if at_once is None else -(-12 // -(-12 // at_once)))
    expected = naive_simcse(examples, model)
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected.item() > 1e-3
    assert_same_gradients(found, gradients(model.model), 1e-5)


def test_simcses_two_copies_differ_by_dropout_alone(tiny_llama: Path) -> None:
    examples = groups(tiny_llama, pairs=False)
    model = headed_model(tiny_llama).model
    noisy = task(tiny_llama).evaluate(examples, PlainPass(model, attention_dropout=0.3), size=6)
    still = task(tiny_llama).evaluate(examples, PlainPass(model), size=6)
    assert still["alignment"] == pytest.approx(0, abs=1e-9)
    assert noisy["alignment"] > 1e-3
    assert noisy["uniformity"] < 0


@pytest.mark.parametrize("at_once", [None, 2])
def test_pairs_with_hard_negatives_count_every_other_document(tiny_llama: Path, at_once: int | None) -> None:
    examples = groups(tiny_llama, pairs=True)
    model = PlainPass(headed_model(tiny_llama).model)
    loss = task(tiny_llama, pairs=True, at_once=at_once).learn(batch_of(examples), model)
    found = gradients(model.model)
    encode = Readout("mean").encode
    documents = [text for group in examples for text in group.documents]
    queries = F.normalize(encode([group.query for group in examples], range(4), model), dim=-1)
    scores = 2 * queries @ F.normalize(encode(documents, range(6), model), dim=-1).T
    # documents: answer, answer, hard, answer, hard, answer; queries 0 and 3 are one text with different answers
    own = torch.tensor([0, 1, 3, 5])
    excluded = torch.zeros(4, 6, dtype=torch.bool)
    excluded[0, 5] = excluded[3, 0] = True
    answers = [group.documents[0].key for group in examples]
    for i in range(4):
        for j, document in enumerate(documents):
            excluded[i, j] |= document.key == answers[i] and j != own[i]
    expected = F.cross_entropy(scores.masked_fill(excluded, -torch.inf), own)
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(found, gradients(model.model), 1e-5)


def test_a_rank_with_fewer_texts_than_parts_runs_every_part(tiny_llama: Path) -> None:
    """Else ranks that split the model would wait for it; the parts without a text of their own change no gradient."""
    examples = groups(tiny_llama, pairs=True)
    model = PlainPass(headed_model(tiny_llama).model)
    texts = [group.query for group in examples]
    found = []
    for most in (4, 11):
        begun = len(model.forwards)
        Readout("mean").learn(texts, range(4), model, lambda x: x.square().sum(), at_once=2, most=most)
        assert model.forwards[begun:] == 2 * ([2, 2] if most == 4 else [1] * 6)
        found.append(gradients(model.model))
    assert_same_gradients(found[1], found[0], 1e-5)


def test_evaluation_in_batches_is_the_mean_over_all(tiny_llama: Path) -> None:
    examples = groups(tiny_llama, pairs=True)
    model = PlainPass(headed_model(tiny_llama).model)
    pairs = task(tiny_llama, pairs=True)
    halves = [pairs.evaluate(examples[i : i + 2], model, size=2)["loss"] for i in (0, 2)]
    whole = pairs.evaluate(examples, model, size=2)
    assert whole["loss"] == pytest.approx(sum(halves) / 2, rel=1e-5)
    assert set(whole) == {"loss", "alignment", "uniformity"}


def test_gradient_caching_passes_gradients_on_in_bfloat16_too(tiny_llama: Path) -> None:
    """The second pass must not reuse weights that autocast cast in the first pass, which builds no graph."""
    examples = groups(tiny_llama, pairs=False)
    found = []
    for at_once in (None, 4):
        model = _Narrow(headed_model(tiny_llama).model, attention_dropout=0.3)
        task(tiny_llama, at_once=at_once).learn(batch_of(examples), model)
        found.append(gradients(model.model))
    assert_same_gradients(found[1], found[0], 0.05)


class _Narrow(PlainPass):
    def forward(self, packed: Packed, numbers: Sequence[int]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(packed, numbers)
