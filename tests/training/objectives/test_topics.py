"""Batches of one topic: every example once, close texts together, the same order on every machine."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastvec.training.objectives import topics
from fastvec.training.objectives.topics import half_by_topic

SIZE = 16


def topical(topics: int, each: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """Return unit vectors [topics · each, 32] in a random order, and the topic of each; topics are far apart."""
    random = np.random.default_rng(0)
    centers = random.standard_normal((topics, 32))
    labels = random.permutation(np.repeat(np.arange(topics), each))
    vectors = centers[labels] + 0.05 * random.standard_normal((len(labels), 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize(("count", "lead"), [(1, 0), (5, 9), (9, 9), (16, 0), (33, 3), (64, 0), (200, 7), (211, 0)])
def test_every_example_is_in_the_order_once(count: int, lead: int) -> None:
    vectors = np.random.default_rng(1).standard_normal((count, 8)).astype(np.float32)
    order = half_by_topic(vectors, lead, SIZE, np.random.default_rng(2))
    assert sorted(order.tolist()) == list(range(count))


@pytest.mark.parametrize("batches", [2, 3])
def test_of_a_few_batches_none_has_one_topic(batches: int) -> None:
    vectors, labels = topical(topics=batches, each=SIZE)
    found = labels[half_by_topic(vectors, 0, SIZE, np.random.default_rng(3))].reshape(-1, SIZE)
    assert all(len(set(batch.tolist())) > 1 for batch in found)


@pytest.mark.parametrize("lead", [0, 5])
def test_half_of_the_batches_have_few_topics_and_the_others_many(lead: int) -> None:
    vectors, labels = topical(topics=8, each=2 * SIZE)
    order = half_by_topic(vectors[: len(vectors) - SIZE + lead], lead, SIZE, np.random.default_rng(3))
    batches = labels[order[lead:]].reshape(-1, SIZE)
    different = [len(set(batch.tolist())) for batch in batches]
    assert len(batches) == 15
    assert sum(many <= 3 for many in different) == 8  # more than one, because whole batches do not fit the topics
    assert sum(many >= 5 for many in different) == 7
    alone = np.array(different) <= 3
    assert alone.tolist() != sorted(alone.tolist())
    assert alone.tolist() != sorted(alone.tolist(), reverse=True)


def test_what_decides_the_order_are_integers_that_float64_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sums are exact, so that every machine finds the same order."""
    compared: list[npt.NDArray[np.float64]] = []

    def recorded(values: npt.NDArray[np.float64], **options: Any) -> npt.NDArray[np.intp]:
        compared.append(values)
        return np.lexsort((values,))  # stable

    monkeypatch.setattr(topics, "np", SimpleNamespace(**{**vars(np), "argsort": recorded}))
    vectors = np.random.default_rng(4).standard_normal((9000, 384)).astype(np.float32)
    half_by_topic(vectors, 0, SIZE, np.random.default_rng(6))
    projections = np.concatenate(compared)
    assert np.array_equal(projections, np.rint(projections))
    assert 1e6 < np.abs(projections).max() < 2**40


def test_a_vectors_length_does_not_matter() -> None:
    vectors = np.random.default_rng(7).standard_normal((256, 24)).astype(np.float32)
    scale = np.float32(2) ** np.random.default_rng(8).integers(-130, 20, (256, 1))
    one, other = (half_by_topic(some, 0, SIZE, np.random.default_rng(9)) for some in (vectors, vectors * scale))
    np.testing.assert_array_equal(one, other)
