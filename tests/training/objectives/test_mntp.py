from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from fastvec.texts.packing import IntArray
from fastvec.training.objectives.language_head import LanguageHead
from fastvec.training.objectives.losses import MaskRule, mask_tokens, next_tokens
from fastvec.training.objectives.mntp import TokenTask
from fastvec.training.objectives.task import Batch, split_by_length
from tests.helpers.tiny import SENTENCES
from tests.training.steps import PlainPass, assert_same_gradients, chunk_of, gradients, headed_model, text_tokenizer

MASK = 2
RULE = MaskRule(mask_id=MASK, vocabulary=300, special_ids=frozenset({0, 1, 2}), probability=0.5)


def mntp(folder: Path, *, max_length: int = 16, at_once: int | None = None) -> tuple[TokenTask, PlainPass]:
    causal = headed_model(folder)
    causal.lm_head.requires_grad_(False)
    task = TokenTask(
        text_tokenizer(folder, max_length=1 << 30),
        LanguageHead(causal),
        lambda ids, random: mask_tokens(ids, RULE, random),
        max_length=max_length,
        at_once=at_once,
    )
    return task, PlainPass(causal.model)


def examples(task: TokenTask) -> list[IntArray]:
    return task.examples_of(chunk_of([*SENTENCES, None, "  "]), np.ones(7, dtype=bool))


def test_texts_are_laid_end_to_end_and_the_remainder_is_kept(tiny_llama: Path) -> None:
    task, _ = mntp(tiny_llama)
    found = examples(task)
    whole = np.concatenate([text_tokenizer(tiny_llama)([text]).ids for text in SENTENCES])
    assert np.concatenate(found).tolist() == whole.tolist()
    assert [len(part) for part in found] == [16] * (len(whole) // 16) + [len(whole) % 16]
    assert len(whole) % 16 > 1
    assert task.examples_of(chunk_of(SENTENCES), np.zeros(5, dtype=bool)) == []


@pytest.mark.parametrize("at_once", [None, 2])
def test_a_steps_loss_and_gradients_are_those_of_plain_transformers_one_by_one(
    tiny_llama: Path, at_once: int | None
) -> None:
    task, model = mntp(tiny_llama, at_once=at_once)
    batch = Batch(step=0, examples=examples(task), rank=0, ranks=1)
    loss = task.learn(batch, model)
    found = gradients(model.model)
    assert model.forwards == ([5] if at_once is None else [2, 2, 1])

    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    plain.config.is_causal = False
    losses, targets = [], 0
    for number, ids in enumerate(batch.examples):
        hidden = mask_tokens(ids, RULE, np.random.default_rng([model.seed, number]))
        logits = plain(input_ids=torch.from_numpy(hidden.ids.astype(np.int64))[None], use_cache=False).logits[0]
        for place, label in zip(hidden.places.tolist(), hidden.labels.tolist(), strict=True):
            losses.append(-F.log_softmax(logits[place].double(), dim=0)[label])
            targets += 1
    expected = torch.stack(losses).sum() / targets
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(found, gradients(plain.model), 1e-5)


def test_two_ranks_halves_average_to_the_double_batch(tiny_llama: Path) -> None:
    """Averaged as DistributedDataParallel does; masks and loss weights are derived from the whole batch."""
    task, model = mntp(tiny_llama, max_length=12)
    sequences = examples(task)[:6]
    whole_loss = task.learn(Batch(step=0, examples=sequences, rank=0, ranks=1), model)
    whole = gradients(model.model)
    halves = []
    for rank in range(2):
        loss = task.learn(Batch(step=0, examples=sequences, rank=rank, ranks=2), model)
        halves.append((loss, gradients(model.model)))
    assert ((halves[0][0] + halves[1][0]) / 2).item() == pytest.approx(whole_loss.item(), rel=1e-6)
    mean = {name: (halves[0][1][name] + halves[1][1][name]) / 2 for name in whole}
    assert_same_gradients(mean, whole, 1e-5)


def test_evaluation_says_loss_and_share_of_right_guesses(tiny_llama: Path) -> None:
    task, model = mntp(tiny_llama)
    sequences = examples(task)
    loss = task.learn(Batch(step=0, examples=sequences, rank=0, ranks=1), model)
    for size in (1, 3, 100):
        measured = task.evaluate(sequences, model, size=size)
        assert measured["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert 0 <= measured["accuracy"] < 0.2


def test_a_head_that_is_sure_and_right_has_no_loss(tiny_llama: Path) -> None:
    causal = headed_model(tiny_llama)
    asked = next_tokens(np.array([7, 7, 7]))
    causal.lm_head = torch.nn.Linear(64, 300)
    with torch.no_grad():
        causal.lm_head.weight.zero_()
        causal.lm_head.bias.fill_(-50.0)[7] = 50.0
    sure = TokenTask(
        text_tokenizer(tiny_llama), LanguageHead(causal), lambda ids, random: asked, max_length=8, at_once=None
    )
    assert sure.evaluate([asked.ids], PlainPass(causal.model), size=4) == {"loss": pytest.approx(0), "accuracy": 1.0}


@pytest.mark.parametrize(("at_once", "groups"), [(None, [[2, 0, 3, 1]]), (2, [[2, 0], [3, 1]]), (3, [[2, 0], [3, 1]])])
def test_sequences_go_together_by_length(at_once: int | None, groups: list[list[int]]) -> None:
    assert split_by_length([5, 1, 9, 5], at_once) == groups


def test_there_are_as_many_groups_as_the_longest_list_of_sequences_needs() -> None:
    assert split_by_length([5, 1, 9, 5], 2, 5) == [[2, 0], [3], [1]]
    assert split_by_length([5, 1], 2, 6) == [[0], [1], []]
    assert split_by_length([5, 1], None, 6) == [[0, 1]]
