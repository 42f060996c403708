import numpy as np
import pytest

from fastvec.maps.clusters import cluster_points, name_clusters, words_of


def test_clusters_are_numbered_by_size() -> None:
    sizes = (10, 40, 20)
    centers = np.repeat([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]], sizes, axis=0)
    points = centers + np.random.default_rng(0).random((70, 2))
    clusters = cluster_points(points, seed=0)
    assert len(np.unique(clusters)) == 6  # the square root of 35, rounded
    assert (np.diff(np.bincount(clusters)) <= 0).all()
    groups = np.repeat(np.arange(3), sizes)
    assert all(len(np.unique(groups[clusters == c])) == 1 for c in range(6))
    assert (cluster_points(points, seed=0) == clusters).all()


@pytest.mark.parametrize(("points", "count"), [(1, 1), (2, 2), (3, 3), (20_000, 40)])
def test_the_number_of_clusters_is_bounded(points: int, count: int) -> None:
    assert cluster_points(np.random.default_rng(0).random((points, 2)), seed=0).max() == count - 1


def test_equal_points_are_one_cluster() -> None:
    assert cluster_points(np.ones((50, 2)), seed=0).tolist() == [0] * 50


def test_names_are_words_of_this_cluster_and_not_of_others() -> None:
    texts = [
        "The whale and the dolphin swim in water",
        "A whale swims; dolphins too: water",
        "Water around the whale",
        "bread bread bread bread, and water",
        "Yeast makes bread from water and flour",
        "Flour, yeast and water: bread. Unrepeated",
    ]
    names = name_clusters(np.array([0, 0, 0, 1, 1, 1]), texts)
    assert names == [("whale",), ("bread", "flour", "yeast")]


def test_a_text_that_repeats_a_word_does_not_name_a_cluster() -> None:
    texts = ["cat " + "spam " * 1000, "cat", "cat", "dog", "dog", "dog"]
    assert name_clusters(np.array([0, 0, 0, 1, 1, 1]), texts) == [("cat",), ("dog",)]


def test_names_have_one_of_singular_and_plural() -> None:
    texts = ["planet planets", "planet planets", "planets star", "tree", "tree", "tree"]
    assert name_clusters(np.array([0, 0, 0, 1, 1, 1]), texts)[0] == ("planets",)


def test_one_text_has_a_name_of_its_own_words() -> None:
    assert name_clusters(np.array([0, 0, 1]), ["cat", "cat", "zebra"]) == [("cat",), ("zebra",)]


@pytest.mark.parametrize("texts", [["", "", ""], ["the and of", "1 2 3", "? !"]])
def test_texts_without_words_have_no_names(texts: list[str]) -> None:
    assert name_clusters(np.array([0, 0, 1]), texts) == [(), ()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Whale's 42 fins don't x_y", ["whale", "fins"]),
        ("Zürich ÉCOLE", ["zürich", "école"]),
        ("東京都 Tokyo", ["東京", "京都", "tokyo"]),
        ("a" * 25, []),
        ("<script>alert(1)</script>", ["script", "alert", "script"]),
    ],
)
def test_words_are_of_letters_and_no_stop_words(text: str, words: list[str]) -> None:
    assert list(words_of(text)) == words
