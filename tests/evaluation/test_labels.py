"""Classification and clustering."""

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import accuracy_score, f1_score, v_measure_score

from fastvec.evaluation.baselines import tfidf
from fastvec.evaluation.bootstrap import SEED, bootstrap
from fastvec.evaluation.labels import SEEDS, Classification, Clustering, Labeled, accuracy_and_f1, v_measures


def test_accuracy_and_f1_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    wanted, found = random.choice(list("abcd"), size=(2, 40), p=[0.6, 0.2, 0.15, 0.05])
    accuracy, f1 = bootstrap(40, accuracy_and_f1(wanted, found))
    assert accuracy.value == pytest.approx(accuracy_score(wanted, found))
    assert f1.value == pytest.approx(f1_score(wanted, found, average="macro"))
    again = np.random.default_rng(SEED)
    drawn = [again.integers(40, size=40) for _ in range(20)]
    assert accuracy.samples[:20] == pytest.approx([accuracy_score(wanted[one], found[one]) for one in drawn])
    assert f1.samples[:20] == pytest.approx([f1_score(wanted[one], found[one], average="macro") for one in drawn])


def test_a_text_has_the_label_of_its_nearest_neighbour() -> None:
    train = Labeled(texts=["red apple", "green pear", "fast car"], labels=["fruit", "fruit", "vehicle"])
    test = Labeled(texts=["a car", "an apple", "a red car that is fast"], labels=["vehicle", "fruit", "fruit"])
    found = Classification(name="toy", train=train, test=test).judge(tfidf())
    assert found["accuracy"].value == pytest.approx(2 / 3)
    assert found["macro F1"].value == pytest.approx(2 / 3)


def test_v_measures_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels = list("abc") * 30
    vectors = np.eye(8)[[ord(label) - ord("a") for label in labels]] + 0.6 * random.normal(size=(90, 8))
    expected = []
    for seed in range(SEEDS):
        clusters = MiniBatchKMeans(3, batch_size=512, init="k-means++", n_init=1, random_state=seed).fit(vectors)
        expected.append(v_measure_score(labels, clusters.labels_))
    assert v_measures(vectors, labels) == pytest.approx(expected)
    assert 0 < np.mean(expected) < 1


def test_clustering_separates_what_shares_no_word() -> None:
    texts = ["apple pear", "pear apple", "apple", "car bus", "bus car", "bus"]
    found = Clustering(name="toy", data=Labeled(texts=texts, labels=list("aaabbb"))).judge(tfidf())["V-measure"]
    assert found.value == pytest.approx(found.samples.mean())
    assert len(found.samples) == SEEDS
    assert found.samples.max() == pytest.approx(1)
