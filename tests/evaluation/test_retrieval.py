from math import log2

import numpy as np
import pytest

from fastvec.errors import InputError
from fastvec.evaluation.baselines import Bm25, tfidf
from fastvec.evaluation.retrieval import Retrieval, retrieval_measures

DOCUMENTS = {
    "train": "A locomotive pulls a train along the railway.",
    "bread": "Bread is baked from flour and water.",
    "cats": "Cats chase mice at night.",
    "rail": "Freight moves by railway, passengers too.",
}


def test_measures_by_hand() -> None:
    """Relevances of the ranking of q1: 2, 0, 1; one more document with relevance 1 is not found."""
    qrels = {"q1": {"a": 2, "b": 0, "c": 1, "d": 1}, "q2": {"x": 1}, "q3": {"a": 1}}
    run = {"q1": {"a": 0.9, "b": 0.8, "c": 0.7}, "q2": {"y": 2.0, "x": 1.0}}
    best = 2 + 1 / log2(3) + 1 / log2(4)
    expected = [
        [(2 + 1 / log2(4)) / best, 2 / 3, 1],
        [1 / log2(3), 1, 1 / 2],
        [0, 0, 0],  # not in the run
    ]
    assert retrieval_measures(qrels, run) == pytest.approx(np.array(expected))


@pytest.mark.parametrize(("rank", "expected"), [(10, (1 / log2(11), 1, 1 / 10)), (11, (0, 1, 0)), (101, (0, 0, 0))])
def test_each_measure_has_its_depth(rank: int, expected: tuple[float, float, float]) -> None:
    run = {"q": {f"d{place:03}": -float(place) for place in range(1, 102)}}
    assert retrieval_measures({"q": {f"d{rank:03}": 1}}, run)[0] == pytest.approx(expected)


def test_equal_scores_are_ranked_by_id_in_every_measure() -> None:
    """In float32, in which trec_eval compares: 1 and 1 + 1e-9 are equal there."""
    run = {"q": {f"d{place:02}": 1 + 1e-9 * place for place in range(12)}}
    last, ndcg_rank = "d00", 12
    assert retrieval_measures({"q": {last: 1}}, run)[0].tolist() == [0, 1, 0], ndcg_rank
    assert retrieval_measures({"q": {"d11": 1}}, run)[0].tolist() == [1, 1, 1]


def task(query: str) -> Retrieval:
    return Retrieval(name="toy", queries={"q": query}, documents=DOCUMENTS, qrels={"q": {"rail": 1}})


@pytest.mark.parametrize("baseline", [tfidf(), Bm25()], ids=lambda one: one.name)
def test_baselines_find_documents_with_words_of_the_query(baseline: Bm25) -> None:
    run = task("passengers on a railway").run(baseline)["q"]
    assert sorted(run, key=lambda document: -run[document]) == ["rail", "train"]
    assert task("zebra").run(baseline) == {"q": {}}
    judged = task("zebra").judge(baseline)
    assert {name: found.value for name, found in judged.items()} == {"nDCG@10": 0, "recall@100": 0, "MRR@10": 0}


def test_bm25_of_one_word_by_its_formula() -> None:
    """Lucene's BM25: idf · tf / (tf + k1 (1 - b + b · length/average)), idf = ln(1 + (n - df + ½)/(df + ½))."""
    documents = {"one": "apple apple pear", "two": "apple plum", "three": "plum plum"}
    found = Retrieval(name="", queries={"q": "apple"}, documents=documents, qrels={"q": {"one": 1}}).run(Bm25())["q"]
    idf = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    average = 7 / 3
    expected = {
        name: idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * length / average))
        for name, count, length in (("one", 2, 3), ("two", 1, 2))
    }
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("baseline", [tfidf(), Bm25()], ids=lambda one: one.name)
def test_texts_without_words_are_refused(baseline: Bm25) -> None:
    with pytest.raises(InputError, match="no words that a baseline can count"):
        baseline.search(["?"], ["!", "."], 10)
