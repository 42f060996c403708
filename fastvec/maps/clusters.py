"""Divides a map into regions, and names each by the words that are typical of its texts.

Shapes: n points, C clusters, W distinct words.
"""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fastvec.maps.projection import Points

FEWEST, MOST = 3, 40  # clusters
WORDS = 3  # of a name
FEWEST_TEXTS = 2  # of a cluster that have a word of its name
# words of letters; of scripts without spaces between words, pairs of characters
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
IDEOGRAPHS = re.compile(r"[぀-ヿ㐀-鿿]+")


def cluster_points(points: Points, seed: int) -> npt.NDArray[np.int64]:
    """Return the cluster of each of `points` [n]; cluster 0 is the largest.

    By k-means on the map, with k the square root of n / 2, between 3 and 40.
    """
    from sklearn.cluster import KMeans

    distinct = len(np.unique(points, axis=0))
    k = min(max(FEWEST, min(MOST, round(math.sqrt(len(points) / 2)))), distinct)
    found = KMeans(k, random_state=seed, n_init=4).fit(points).labels_
    order = np.argsort(-np.bincount(found, minlength=k), kind="stable")
    rank = np.empty(k, np.int64)
    rank[order] = np.arange(k)
    clusters: npt.NDArray[np.int64] = rank[found]
    return clusters


def name_clusters(clusters: npt.NDArray[np.int64], texts: Sequence[str]) -> list[tuple[str, ...]]:
    """Return up to three words for each cluster of `texts` [n]: frequent in it, and rare elsewhere.

    A word's score is p log(p / q): p is the share of the cluster's texts that contain it, q of all texts. This is
    class-based TF-IDF (Grootendorst, 2022, arXiv:2203.05794) with texts in place of occurrences, so that one text that
    repeats a word does not name a cluster. English stop words do not count, and of two words that differ only in a
    final s, the better one is taken.
    """
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import CountVectorizer

    count = int(clusters.max()) + 1
    vectorizer = CountVectorizer(analyzer=lambda text: list(words_of(text)), binary=True, dtype=np.float32)
    try:
        texts_with = vectorizer.fit_transform(texts)  # [n, W]
    except ValueError:  # no words at all
        return [()] * count
    of_cluster = csr_array((np.ones(len(texts), np.float32), (clusters, np.arange(len(texts)))))  # [C, n]
    inside = (of_cluster @ texts_with).toarray()  # [C, W]
    sizes = np.bincount(clusters, minlength=count)
    p, q = inside / sizes[:, None], inside.sum(axis=0) / len(texts)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(inside >= np.minimum(FEWEST_TEXTS, sizes)[:, None], p * np.log(p / q), 0)
    words = vectorizer.get_feature_names_out()
    best = np.argsort(-scores, axis=1, kind="stable")  # of equal scores, the first by the alphabet
    return [_name([words[i] for i in best[c, : 4 * WORDS] if scores[c, i] > 0]) for c in range(count)]


def words_of(text: str) -> Iterator[str]:
    """Yield the words of a text that may name a cluster, in lower case."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    text = text.lower().replace("’", "'")
    for run in IDEOGRAPHS.findall(text):
        yield from (run[i : i + 2] for i in range(len(run) - 1))
    for word in WORD.findall(IDEOGRAPHS.sub(" ", text)):
        word = word.removesuffix("'s")
        if 3 <= len(word) <= 24 and "'" not in word and word not in ENGLISH_STOP_WORDS:
            yield word


def _name(words: Sequence[str]) -> tuple[str, ...]:
    """Return the first words of which none is another one's plural."""
    chosen: dict[str, str] = {}
    for word in words:
        chosen.setdefault(word.removesuffix("s"), word)
    return tuple(chosen.values())[:WORDS]
