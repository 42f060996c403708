"""Retrieval: how high the relevant documents of a query stand, by trec_eval's measures.

nDCG@10 has the relevance as its gain and a logarithmic discount (Järvelin and Kekäläinen, 2002); recall@100 is the
share of the relevant documents among the first 100; MRR@10 is the reciprocal rank of the first relevant document, 0 if
it is not among the first 10.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastvec.evaluation.bootstrap import Array, Measured, bootstrap, means
from fastvec.evaluation.contestants import Contestant

DEPTH = 100
FIRST = 10

Qrels = Mapping[str, Mapping[str, int]]  # query id, document id, relevance
Run = Mapping[str, Mapping[str, float]]  # query id, document id, score


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """Texts by their ids, and how relevant documents are; every query has a relevant document."""

    kind: ClassVar[str] = "retrieval"
    measures: ClassVar[tuple[str, ...]] = ("nDCG@10", "recall@100", "MRR@10")
    name: str
    queries: dict[str, str]
    documents: dict[str, str]
    qrels: dict[str, dict[str, int]]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        return f"{len(self.queries):,} queries, {len(self.documents):,} documents"

    def judge(self, contestant: Contestant) -> dict[str, Measured]:
        items = retrieval_measures(self.qrels, self.run(contestant))
        return dict(zip(self.measures, bootstrap(len(items), means(items)), strict=True))

    def run(self, contestant: Contestant) -> dict[str, dict[str, float]]:
        """Return the scores of the first 100 documents of each query.

        A baseline has no documents without a word of the query, whose scores are 0.
        """
        ids = list(self.documents)
        found = contestant.search(list(self.queries.values()), list(self.documents.values()), DEPTH)
        least = 0.0 if contestant.baseline else -np.inf
        return {
            query: {ids[row]: score for score, row in zip(*own, strict=True) if score > least}
            for query, *own in zip(self.queries, *(one.tolist() for one in found), strict=True)
        }


def retrieval_measures(qrels: Qrels, run: Run) -> Array:
    """Return nDCG@10, recall@100 and MRR@10 [queries, 3] of each query of `qrels`, in order.

    A query that is not in `run` has zeros. Of documents with the same score, trec_eval puts the last id first.
    """
    from pytrec_eval import RelevanceEvaluator

    of_first = RelevanceEvaluator(qrels, {"recip_rank"})
    of_all = RelevanceEvaluator(qrels, {f"ndcg_cut.{FIRST}", f"recall.{DEPTH}"})
    scores = {query: {document: float(score) for document, score in own.items()} for query, own in run.items()}
    all_of = of_all.evaluate(scores)
    first_of = of_first.evaluate({query: _first(own) for query, own in scores.items()})
    rows = [
        (all_of[query][f"ndcg_cut_{FIRST}"], all_of[query][f"recall_{DEPTH}"], first_of[query]["recip_rank"])
        if query in all_of
        else (0.0, 0.0, 0.0)
        for query in qrels
    ]
    return np.array(rows, dtype=np.float64)


def _first(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the first 10 documents, in trec_eval's order, which compares scores in float32."""
    order = sorted(scores, key=lambda document: (np.float32(scores[document]), document), reverse=True)
    return {document: scores[document] for document in order[:FIRST]}
