"""Baselines that need no model: TF-IDF and, for retrieval, BM25."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastvec.errors import InputError
from fastvec.evaluation.contestants import Contestant, Fitted
from fastvec.evaluation.top_k import Rows, Scores

TFIDF, BM25 = "TF-IDF", "BM25"
NO_WORDS = "the texts have no words that a baseline can count: leave the baselines out with --no-baselines"


def tfidf() -> Fitted:
    """Return TF-IDF with scikit-learn's defaults: words of two characters and more in lower case, rows of length 1."""
    return Fitted(TFIDF, _tfidf)


def _tfidf(texts: list[str]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return TfidfVectorizer().fit_transform(texts)
    except ValueError as error:  # "empty vocabulary"
        raise InputError(NO_WORDS) from error


class Bm25(Contestant):
    """BM25 as bm25s has it by default: Lucene's variant, k1 1.5, b 0.75, English stopwords, no stemming.

    It ranks documents for queries, and has no vectors. A document that shares no word with a query has the score 0.
    """

    baseline = True

    def __init__(self) -> None:
        super().__init__(BM25)

    def vectors(self, first: Sequence[str], second: Sequence[str]) -> tuple[Any, Any]:
        raise NotImplementedError("BM25 has no vectors")

    def search(self, queries: Sequence[str], documents: Sequence[str], k: int) -> tuple[Scores, Rows]:
        import bm25s

        options: Any = {"stopwords": "en", "show_progress": False}
        words = bm25s.tokenize(list(documents), **options)
        if not any(words.ids):
            raise InputError(NO_WORDS)
        index = bm25s.BM25(method="lucene", k1=1.5, b=0.75, backend="numpy")
        index.index(words, show_progress=False)
        asked = bm25s.tokenize(list(queries), **options)
        rows, scores = index.retrieve(asked, k=min(k, len(documents)), show_progress=False)
        return np.asarray(scores, dtype=np.float32), np.asarray(rows, dtype=np.intp)
