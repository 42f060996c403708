"""The training losses, as pure functions of tensors. Each loss has a naive reference implementation.

    MNTP      mean over masked tokens i of −log softmax(head(h_{i−1}))[x_i]           (BehnamGhader et al., 2024)
    InfoNCE   mean over queries i of −log (exp s·q_i·d_i / Σ_j exp s·q_i·d_j)         (van den Oord et al., 2018)
    SimCSE    InfoNCE between two encodings of one text that differ only in dropout   (Gao, Yao, Chen, 2021)
    Distil    mean_i(1 − z_i·v_i) + 5 · mean_ij((z_i·z_j − v_i·v_j)²), v a teacher's  (similarities: Tung, Mori, 2019)
              + λ · mean_i KL(softmax_j(v_i·v_j / τ) ‖ softmax_j(z_i·z_j / τ)), j ≠ i     (Passalis, Tefas, 2018)

Shapes: T packed tokens, M masked tokens, V vocabulary, n queries, N documents, D dimensions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

IntArray = npt.NDArray[np.integer]
Head = Callable[[torch.Tensor], torch.Tensor]
MaskStyle = Literal["bert", "all"]

HEAD_BYTES = 1 << 27  # of float32 logits at a time: 1,024 rows if the vocabulary has 32,768 tokens
DOCUMENTS_AT_ONCE = 4096  # columns of the similarity matrix at a time
SIMILARITY_WEIGHT = 5.0  # relative to the cosine error, because similarity errors are squares of small numbers
NEIGHBOR_WEIGHT = 0.3  # λ: of a trained student the term then is about as large as the other two
NEVER = -1e9  # a score whose softmax is 0, finite so that 0 times its logarithm is 0
NEIGHBOR_TEMPERATURE = 0.05  # τ of the neighbor distributions: a text's few nearest neighbors have most of them


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskRule:
    """Which tokens are masked, and how.

    `bert`: of the chosen tokens, 80 % become the mask token, 10 % a random token, 10 % stay. `all`: all become the mask
    token.
    """

    mask_id: int
    vocabulary: int  # random tokens have ids below it
    special_ids: frozenset[int]  # never masked
    probability: float = 0.2
    style: MaskStyle = "bert"


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedTokens:
    """A sequence with masked tokens: the model's input, and the targets, each predicted from the position before it."""

    ids: IntArray  # [L] the input
    places: IntArray  # [M] positions whose hidden states predict the targets
    labels: IntArray  # [M] the targets: the original tokens


def mask_tokens(ids: IntArray, rule: MaskRule, random: np.random.Generator) -> MaskedTokens:
    """Mask tokens of one sequence `ids` [L].

    The first token may be masked, but is not a target, because no token precedes it.
    """
    chosen = random.random(len(ids)) < rule.probability
    chosen &= ~np.isin(ids, list(rule.special_ids))
    masked = ids.copy()
    fate = random.random(len(ids)) if rule.style == "bert" else np.zeros(len(ids))
    masked[chosen & (fate < 0.8)] = rule.mask_id
    randomized = chosen & (fate >= 0.9)
    masked[randomized] = random.integers(rule.vocabulary, size=int(randomized.sum()))
    targets = np.flatnonzero(chosen)
    targets = targets[targets > 0]
    return MaskedTokens(ids=masked, places=targets - 1, labels=ids[targets])


def next_tokens(ids: IntArray) -> MaskedTokens:
    """Make every token except the first a target, and mask none: the pretraining objective of a causal decoder."""
    return MaskedTokens(ids=ids, places=np.arange(len(ids) - 1), labels=ids[1:])


def token_loss(
    hidden: torch.Tensor, places: torch.Tensor, labels: torch.Tensor, head: Head, vocabulary: int
) -> torch.Tensor:
    """Return the summed cross entropy of `labels` [M] under `head(hidden[places])`, where `hidden` is [T, D].

    Only the rows `places` go through the LM head, in parts. The gradient of each part is computed right after its loss,
    so the full logits [M, V] are never in memory. Does not wait for the device.
    """
    states = hidden.index_select(0, places)
    rows = _rows_at_once(vocabulary)
    weights = [weight for weight in getattr(head, "parameters", list)() if weight.requires_grad]
    loss: torch.Tensor = _TokenLoss.apply(states, labels, head, rows, *weights)  # type: ignore[no-untyped-call]
    return loss


def token_scores(
    hidden: torch.Tensor, places: torch.Tensor, labels: torch.Tensor, head: Head, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the value of `token_loss`, without a gradient, and how many of the labels [M] have the highest logit."""
    rows = _rows_at_once(vocabulary)
    loss, hits = (torch.zeros((), device=hidden.device) for _ in range(2))
    for states, own in zip(torch.split(hidden.index_select(0, places), rows), torch.split(labels, rows), strict=True):
        logits = head(states).float()
        loss += F.cross_entropy(logits, own, reduction="sum")
        hits += (logits.argmax(dim=-1) == own).sum()
    return loss, hits


def _rows_at_once(vocabulary: int) -> int:
    return max(1, HEAD_BYTES // (4 * vocabulary))


def token_loss_reference(
    hidden: torch.Tensor, places: torch.Tensor, labels: torch.Tensor, head: Head, vocabulary: int
) -> torch.Tensor:
    """The definition: one token at a time, in float64."""
    loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for place, label in zip(places.tolist(), labels.tolist(), strict=True):
        logits = head(hidden[place : place + 1])[0].to(torch.float64)
        loss = loss + torch.logsumexp(logits, dim=0) - logits[label]
    return loss


def _cross_entropy(head: Head, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = head(states)
    return F.cross_entropy(logits.to(_wide(logits)), labels, reduction="sum")


def _wide(x: torch.Tensor) -> torch.dtype:
    """Return float32, or float64 for float64, which `gradcheck` needs."""
    return torch.promote_types(x.dtype, torch.float32)


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, labels: torch.Tensor, head: Head, rows: int, *weights: torch.Tensor
    ) -> torch.Tensor:
        total = states.new_zeros((), dtype=_wide(states))
        gradients = torch.empty_like(states)
        weight_gradients = [torch.zeros_like(weight) for weight in weights]
        for begin in range(0, len(states), rows):
            part = states[begin : begin + rows].detach().requires_grad_()
            with torch.enable_grad():
                loss = _cross_entropy(head, part, labels[begin : begin + rows])
            with torch.autocast(part.device.type, enabled=False):
                own, *others = torch.autograd.grad(loss, [part, *weights])
            gradients[begin : begin + rows] = own
            for gradient, other in zip(weight_gradients, others, strict=True):
                gradient += other
            total += loss.detach()
        ctx.save_for_backward(gradients, *weight_gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *above: torch.Tensor) -> tuple[Any, ...]:
        gradients, *weight_gradients = ctx.saved_tensors
        scaled = [(gradient * above[0]).to(gradient.dtype) for gradient in weight_gradients]
        return ((gradients * above[0]).to(gradients.dtype), None, None, None, *scaled)


def info_nce(
    queries: torch.Tensor,
    documents: torch.Tensor,
    own: torch.Tensor,
    *,
    scale: float,
    query_keys: torch.Tensor,
    document_keys: torch.Tensor,
    owner_keys: torch.Tensor,
) -> torch.Tensor:
    """Return the mean InfoNCE loss of `queries` [n, D] over `documents` [N, D]; scores are cosines times `scale`.

    `own` [n] is the document that answers each query. All others are negatives, except copies of the answer, copies of
    the query, and answers to copies of the query. Keys identify texts: `query_keys` [n], `document_keys` [N], and
    `owner_keys` [N], the key of the query that a document answers (−1 if none). The full similarity matrix is never in
    memory: log-sum-exps are accumulated over parts of the documents.
    """
    queries, documents = (F.normalize(vectors.to(_wide(vectors)), dim=-1) for vectors in (queries, documents))
    excluded = _Excluded(own, query_keys, document_keys.index_select(0, own), document_keys, owner_keys)
    with torch.autocast(queries.device.type, enabled=False):  # bfloat16 has 2 digits; a loss near 0 is a difference
        own_scores = scale * (queries * documents.index_select(0, own)).sum(dim=-1)
        normalizers: torch.Tensor = _LogSumExp.apply(queries, documents, scale, excluded)  # type: ignore[no-untyped-call]
        return (normalizers - own_scores).mean()


def info_nce_reference(
    queries: torch.Tensor,
    documents: torch.Tensor,
    own: torch.Tensor,
    *,
    scale: float,
    query_keys: torch.Tensor,
    document_keys: torch.Tensor,
    owner_keys: torch.Tensor,
) -> torch.Tensor:
    """The definition: one query and one document at a time, in float64."""
    queries, documents = queries.double(), documents.double()
    losses = []
    for i, answer in enumerate(own.tolist()):
        scores = {}
        for j, document in enumerate(documents):
            copy = document_keys[j] in (document_keys[answer], query_keys[i]) or owner_keys[j] == query_keys[i]
            if j == answer or not copy:
                scores[j] = scale * queries[i] @ document / (queries[i].norm() * document.norm())
        losses.append(torch.logsumexp(torch.stack(list(scores.values())), dim=0) - scores[answer])
    return torch.stack(losses).mean()


@dataclass(frozen=True, slots=True)
class _Excluded:
    """Determines which documents the loss of each query excludes."""

    own: torch.Tensor
    query_keys: torch.Tensor
    answer_keys: torch.Tensor
    document_keys: torch.Tensor
    owner_keys: torch.Tensor

    def among(self, begin: int, end: int) -> torch.Tensor:
        """Return the mask [n, end − begin] of the documents in [begin, end): True if the query's loss excludes it."""
        documents, owners = self.document_keys[None, begin:end], self.owner_keys[None, begin:end]
        copies = (documents == self.answer_keys[:, None]) | (documents == self.query_keys[:, None])
        copies |= owners == self.query_keys[:, None]
        return copies & (torch.arange(begin, end, device=copies.device)[None] != self.own[:, None])


class _LogSumExp(torch.autograd.Function):
    """log Σ_j exp(scale · q_i·d_j) [n] over documents not excluded, in one pass; backward recomputes the softmax."""

    @staticmethod
    def forward(
        ctx: Any, queries: torch.Tensor, documents: torch.Tensor, scale: float, excluded: _Excluded
    ) -> torch.Tensor:
        result = queries.new_full((len(queries),), -torch.inf)
        for _, scores in _score_parts(queries, documents, scale, excluded):
            result = torch.logaddexp(result, torch.logsumexp(scores, dim=1))
        ctx.save_for_backward(queries, documents, result)
        ctx.scale, ctx.excluded = scale, excluded
        return result

    @staticmethod
    def backward(ctx: Any, *above: torch.Tensor) -> tuple[Any, ...]:
        queries, documents, result = ctx.saved_tensors
        for_queries, for_documents = torch.zeros_like(queries), torch.zeros_like(documents)
        for part, scores in _score_parts(queries, documents, ctx.scale, ctx.excluded):
            weights = torch.exp(scores - result[:, None]) * above[0][:, None] * ctx.scale
            for_queries += weights @ documents[part]
            for_documents[part] = weights.T @ queries
        return for_queries, for_documents, None, None


def _score_parts(
    queries: torch.Tensor, documents: torch.Tensor, scale: float, excluded: _Excluded
) -> Iterator[tuple[slice, torch.Tensor]]:
    for begin in range(0, len(documents), DOCUMENTS_AT_ONCE):
        end = min(begin + DOCUMENTS_AT_ONCE, len(documents))
        scores = scale * queries @ documents[begin:end].T
        yield slice(begin, end), scores.masked_fill(excluded.among(begin, end), -torch.inf)


def distillation(
    vectors: torch.Tensor,
    targets: torch.Tensor,
    all_vectors: torch.Tensor,
    all_targets: torch.Tensor,
    *,
    first: int = 0,
    neighbor_weight: float = 0.0,
) -> torch.Tensor:
    """Return the error of `vectors` [n, D] and of their similarities, compared with a teacher's `targets` [n, D].

    The error is mean_i(1 − z_i·v_i) + 5 · mean_ij((z_i·z_j − v_i·v_j)²), where z are the unit `vectors` and v the unit
    `targets`, and `neighbor_weight` times the `neighbor_divergence`. i runs over this rank's n texts, j over those of
    all ranks, `all_vectors` and `all_targets` [N, D], of which this rank's begin with row `first`.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        z, v, all_z, all_v = (F.normalize(x.to(_wide(x)), dim=-1) for x in (vectors, targets, all_vectors, all_targets))
        learned, taught = z @ all_z.T, v @ all_v.T
        error = 1 - (z * v).sum(dim=-1).mean() + SIMILARITY_WEIGHT * (learned - taught).square().mean()
        if neighbor_weight:
            error = error + neighbor_weight * neighbor_divergence(learned, taught, first)
        return error


def neighbor_divergence(learned: torch.Tensor, taught: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Return how much the neighbors of n texts among N differ by two matrices of cosines [n, N].

    It is mean_i KL(p_i ‖ q_i), where q_i(j) is the softmax over j ≠ i of learned_ij / τ, and p_i(j) that of
    taught_ij / τ, with τ = `NEIGHBOR_TEMPERATURE`; 0 if N is 1. Text i is number `first` + i of the N. The squares in
    `distillation` weight all pairs alike, and nearly all pairs of a batch are unrelated.
    """
    rows = torch.arange(learned.shape[1], device=learned.device)
    own = rows == rows[first : first + len(learned), None]
    q, p = (
        F.log_softmax((cosines / NEIGHBOR_TEMPERATURE).masked_fill(own, NEVER), dim=1) for cosines in (learned, taught)
    )
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def distillation_reference(vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The definition in one process: one pair at a time, in float64."""
    z, v = (list(x.double() / x.double().norm(dim=-1, keepdim=True)) for x in (vectors, targets))
    apart = torch.stack([1 - own @ other for own, other in zip(z, v, strict=True)]).mean()
    pairs = [(z[i] @ z[j] - v[i] @ v[j]) ** 2 for i in range(len(z)) for j in range(len(z))]
    return apart + SIMILARITY_WEIGHT * torch.stack(pairs).mean()


def neighbor_divergence_reference(vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The definition in one process: one text at a time, in float64."""
    z, v = (list(x.double() / x.double().norm(dim=-1, keepdim=True)) for x in (vectors, targets))
    divergences = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        q, p = (torch.stack([torch.exp(x[i] @ x[j] / NEIGHBOR_TEMPERATURE) for j in others]) for x in (z, v))
        q, p = q / q.sum(), p / p.sum()
        divergences.append((p * (p / q).log()).sum())
    return torch.stack(divergences).mean()


def alignment(queries: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of paired unit vectors, [n, D] each (Wang and Isola, 2020); 0 is best."""
    return (F.normalize(queries, dim=-1) - F.normalize(positives, dim=-1)).square().sum(dim=-1).mean()


def uniformity(vectors: torch.Tensor) -> torch.Tensor:
    """Return the log of the mean of exp(−2 · squared distance) over all pairs of unit vectors [n, D] (same paper).

    Lower is better; 0 if all vectors are equal. Needs at least two vectors.
    """
    return torch.pdist(F.normalize(vectors, dim=-1)).square().mul(-2).exp().mean().log()
