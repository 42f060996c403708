import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastvec.training.objectives import losses
from fastvec.training.objectives.losses import (
    MaskRule,
    MaskStyle,
    alignment,
    distillation,
    distillation_reference,
    info_nce,
    info_nce_reference,
    mask_tokens,
    neighbor_divergence,
    neighbor_divergence_reference,
    next_tokens,
    token_loss,
    token_loss_reference,
    token_scores,
    uniformity,
)

MASK, VOCABULARY = 2, 50
SPECIAL = frozenset({0, 1, MASK})


def rule(style: MaskStyle, probability: float = 0.2) -> MaskRule:
    return MaskRule(mask_id=MASK, vocabulary=VOCABULARY, special_ids=SPECIAL, probability=probability, style=style)


def long_sequence() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(0).integers(0, VOCABULARY, 100_000)


def test_berts_masking_hides_a_fifth_four_fifths_of_it_by_the_mask() -> None:
    ids = long_sequence()
    hidden = mask_tokens(ids, rule("bert"), np.random.default_rng(1))
    ordinary = ~np.isin(ids, list(SPECIAL))
    assert len(hidden.labels) / ordinary.sum() == pytest.approx(0.2, abs=0.01)
    assert (hidden.labels == ids[hidden.places + 1]).all()
    assert not set(hidden.labels.tolist()) & SPECIAL
    given = hidden.ids[hidden.places + 1]
    assert (given == MASK).mean() == pytest.approx(0.8, abs=0.02)
    # one tenth keeps its id; of the tenth replaced at random, one in fifty draws its own id and one the mask's
    assert (given == hidden.labels).mean() == pytest.approx(0.1 + 0.1 / VOCABULARY, abs=0.01)
    others = np.setdiff1d(np.arange(len(ids)), hidden.places + 1)
    others = others[others > 0]
    assert (hidden.ids[others] == ids[others]).all()


def test_all_masked_leaves_nothing_of_what_is_chosen() -> None:
    ids = long_sequence()
    hidden = mask_tokens(ids, rule("all", 0.8), np.random.default_rng(1))
    assert (hidden.ids[hidden.places + 1] == MASK).all()
    assert len(hidden.labels) / (~np.isin(ids, list(SPECIAL))).sum() == pytest.approx(0.8, abs=0.01)


def test_a_hidden_first_token_is_no_target() -> None:
    ids = np.arange(3, 13)
    hidden = mask_tokens(ids, rule("all", 1.0), np.random.default_rng(0))
    assert (hidden.ids == MASK).all()
    assert hidden.places.tolist() == list(range(9))
    assert hidden.labels.tolist() == ids[1:].tolist()


def test_masking_follows_from_its_generator_and_changes_no_input() -> None:
    ids = long_sequence()
    before = ids.copy()
    first, second, other = (mask_tokens(ids, rule("bert"), np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert (first.ids == second.ids).all()
    assert (first.ids != other.ids).any()
    assert (ids == before).all()


def test_next_tokens_hides_nothing_and_asks_for_everything() -> None:
    asked = next_tokens(np.array([5, 6, 7]))
    assert (asked.ids.tolist(), asked.places.tolist(), asked.labels.tolist()) == ([5, 6, 7], [0, 1], [6, 7])


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute 3 rows of logits and 3 documents at a time, so that small inputs need several parts."""
    monkeypatch.setattr(losses, "HEAD_BYTES", 4 * VOCABULARY * 3)
    monkeypatch.setattr(losses, "DOCUMENTS_AT_ONCE", 3)


def token_case(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.nn.Linear]:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, VOCABULARY, dtype=dtype)
    hidden = torch.randn(20, 8, dtype=dtype, requires_grad=True)
    places = torch.tensor([0, 3, 3, 9, 18, 19, 7, 1])  # 3 occurs twice. In training, a state never has two labels,
    return hidden, places, torch.randint(VOCABULARY, (len(places),)), head  # but its gradients must still add up


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_token_loss_and_its_gradients_are_those_of_the_definition(dtype: torch.dtype, tolerance: float) -> None:
    hidden, places, labels, head = token_case(dtype)
    arguments = [hidden, *head.parameters()]
    loss = token_loss(hidden, places, labels, head, VOCABULARY)
    expected = token_loss_reference(hidden, places, labels, head, VOCABULARY)
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=0)
    pairs = zip(torch.autograd.grad(3 * loss, arguments), torch.autograd.grad(3 * expected, arguments), strict=True)
    for gradient, right in pairs:
        torch.testing.assert_close(gradient, right, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("small_parts")
def test_token_loss_holds_against_finite_differences() -> None:
    hidden, places, labels, head = token_case(torch.float64)
    head.requires_grad_(False)  # as during adaptation
    assert torch.autograd.gradcheck(lambda h: token_loss(h, places, labels, head, VOCABULARY), hidden)


@pytest.mark.usefixtures("small_parts")
def test_token_scores_are_the_loss_and_the_right_guesses() -> None:
    hidden, places, labels, head = token_case(torch.float32)
    guesses = head(hidden[places]).argmax(dim=-1)
    labels[:3] = guesses[:3]
    labels[3] = (guesses[3] + 1) % VOCABULARY
    with torch.no_grad():
        loss, hits = token_scores(hidden, places, labels, head, VOCABULARY)
    expected = token_loss_reference(hidden, places, labels, head, VOCABULARY)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert hits.item() == (guesses == labels).sum().item() >= 3


def contrast_case(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """4 queries, 7 documents: queries 0 and 3 are one text, document 6 is query 1's text, document 4 copies 0."""
    torch.manual_seed(1)
    keys = {
        "own": torch.tensor([0, 1, 3, 5]),
        "query_keys": torch.tensor([10, 11, 12, 10]),
        "document_keys": torch.tensor([20, 21, 22, 23, 20, 25, 11]),
        "owner_keys": torch.tensor([10, 11, -1, 12, -1, 10, -1]),
    }
    queries, documents = (torch.randn(n, 6, dtype=dtype, requires_grad=True) for n in (4, 7))
    return queries, documents, keys


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_info_nce_and_its_gradients_are_those_of_the_definition(scale: float) -> None:
    queries, documents, keys = contrast_case(torch.float64)
    loss = info_nce(queries, documents, scale=scale, **keys)
    expected = info_nce_reference(queries, documents, scale=scale, **keys)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    vectors = [queries, documents]
    for gradient, right in zip(torch.autograd.grad(loss, vectors), torch.autograd.grad(expected, vectors), strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(lambda q, d: info_nce(q, d, scale=scale, **keys), (queries, documents))


@pytest.mark.usefixtures("small_parts")
def test_copies_of_an_answer_or_a_query_are_no_negatives() -> None:
    queries, documents, keys = contrast_case(torch.float64)
    excluded = {}
    for query in range(4):
        own = slice(query, query + 1)
        one = {name: value[own] if name in ("own", "query_keys") else value for name, value in keys.items()}
        loss = info_nce(queries[own], documents, scale=10.0, **one)
        (gradient,) = torch.autograd.grad(loss, documents)
        excluded[query] = (gradient == 0).all(dim=1).nonzero().flatten().tolist()
    # query 0: a copy of its answer and query 3's answer to the same text; 1: its own text; 3: query 0's answer
    assert excluded == {0: [4, 5], 1: [6], 2: [], 3: [0]}


def test_info_nce_of_one_query_and_its_answer_alone_is_zero() -> None:
    vectors = torch.randn(1, 4)
    keys = {"query_keys": torch.tensor([1]), "document_keys": torch.tensor([2]), "owner_keys": torch.tensor([1])}
    assert info_nce(vectors, -vectors, torch.tensor([0]), scale=20.0, **keys).item() == pytest.approx(0, abs=1e-5)


def test_info_nce_is_computed_in_float32_under_autocast() -> None:
    queries, documents, keys = contrast_case(torch.float32)
    expected = info_nce(queries, documents, scale=20.0, **keys)
    with torch.autocast("cpu", torch.bfloat16):
        assert info_nce(queries, documents, scale=20.0, **keys).item() == expected.item()


def test_alignment_and_uniformity_by_hand() -> None:
    x = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    y = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    assert alignment(x, y).item() == pytest.approx((0 + 4) / 2)
    assert uniformity(x).item() == pytest.approx(math.log(math.exp(-2 * 2)))
    assert uniformity(torch.ones(3, 2)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("teacher", ["another", "the same"])
def test_distillation_over_ranks_is_the_mean_of_its_parts(teacher: str) -> None:
    torch.manual_seed(0)
    z = torch.randn(6, 5, requires_grad=True)
    v = torch.randn(6, 5) if teacher == "another" else 3 * z.detach()
    expected = distillation_reference(z, v)
    (gradient,) = torch.autograd.grad(expected, z)
    parts = [distillation(z[own], v[own], z, v) for own in (slice(0, 2), slice(2, 4), slice(4, 6))]
    loss = torch.stack(parts).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], gradient, rtol=1e-4, atol=1e-6)
    if teacher == "the same":
        assert loss.item() == pytest.approx(0, abs=1e-6)


def test_distillation_by_hand() -> None:
    z, v = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 5.0], [0.0, 1.0]])
    # cosines 0 and 1; two of the four similarities are 0 instead of 1
    assert distillation(z, v, z, v).item() == pytest.approx(0.5 + 5 * 0.5)


def cosines(z: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.normalize(z, dim=1) @ F.normalize(v, dim=1).T


def test_neighbor_divergence_over_ranks_is_the_mean_of_its_parts() -> None:
    torch.manual_seed(0)
    z, v = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    expected = distillation_reference(z, v) + 2 * neighbor_divergence_reference(z, v)
    (gradient,) = torch.autograd.grad(expected, z)
    owned = [slice(first, first + 2) for first in (0, 2, 4)]
    parts = [distillation(z[own], v[own], z, v, first=own.start, neighbor_weight=2.0) for own in owned]
    loss = torch.stack(parts).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], gradient, rtol=1e-4, atol=1e-6)


def test_neighbor_divergence_by_hand() -> None:
    """Cosines of text 0 with texts 1 and 2: the teacher's are 1 and 0, the student's 0 and 1."""
    v = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    far = 1 / losses.NEIGHBOR_TEMPERATURE
    near = 1 / (1 + math.exp(-far))
    expected = (2 * near - 1) * far  # p and q are each other's reverse
    assert neighbor_divergence(cosines(z[:1], z), cosines(v[:1], v)).item() == pytest.approx(expected)
    assert neighbor_divergence(cosines(v, v), cosines(v, v)).item() == pytest.approx(0, abs=1e-6)


def test_one_text_has_no_neighbors() -> None:
    z = torch.ones(1, 3, requires_grad=True)
    loss = neighbor_divergence(cosines(z, z), torch.ones(1, 1))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, z)[0].tolist() == [[0, 0, 0]]
