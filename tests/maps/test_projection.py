import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import csr_array

from fastvec.maps import projection
from fastvec.maps.projection import _with_islands_near, nearest_neighbors, project
from tests.maps.outputs import random_vectors, unit


def test_nearest_neighbors_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "BLOCK_VALUES", 1000)  # 8 rows at a time
    vectors = random_vectors(120)
    neighbors, distances = nearest_neighbors(vectors, 10)
    wide = vectors.astype(np.float64)
    expected = 1 - wide @ wide.T
    np.fill_diagonal(expected, 0)
    # a similarity is a sum of 8 products, each below 1, of which every step rounds by at most 2^-24
    bound = 16 * 2**-24
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :10], rtol=0, atol=bound)
    np.testing.assert_allclose(
        distances, np.take_along_axis(expected, neighbors.astype(np.int64), axis=1), rtol=0, atol=bound
    )
    assert (neighbors[:, 0] == np.arange(120)).all()
    assert all(len(set(row)) == 10 for row in neighbors.tolist())


def test_equal_and_zero_vectors_have_neighbors() -> None:
    vectors = np.vstack([np.repeat(random_vectors(1), 5, axis=0), np.zeros((1, 8), np.float32)])
    neighbors, distances = nearest_neighbors(vectors, 6)
    assert (neighbors[:, 0] == np.arange(6)).all()
    assert distances.min() == 0
    assert distances[:5, :5].max() <= 16 * 2**-24
    assert (distances[5, 1:] == 1).all()
    with pytest.raises(ValueError, match="7 neighbours of 6 vectors"):
        nearest_neighbors(vectors, 7)


def test_a_few_vectors_are_projected_with_their_distances() -> None:
    plane = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 2)))[0]
    flat = np.random.default_rng(2).standard_normal((10, 2)) * [2, 1]
    vectors = (flat @ plane.T).astype(np.float32)
    points = project(vectors, 0)

    def distances(of: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(np.linalg.norm(of[:, None] - of[None], axis=2))

    np.testing.assert_allclose(distances(points), distances(vectors.astype(np.float64)), atol=1e-6)
    assert points[:, 0].std() > points[:, 1].std()


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (3, 1), (15, 2)])
def test_any_few_vectors_have_places(shape: tuple[int, int]) -> None:
    points = project(random_vectors(*shape), 0)
    assert points.shape == (shape[0], 2)
    assert np.isfinite(points).all()


def test_islands_come_nearer_and_keep_their_shape() -> None:
    random = np.random.default_rng(0)
    mainland, large = random.standard_normal((900, 2)), random.normal([0.0, 40.0], size=(94, 2))
    islands = [random.uniform([50, 0], [51, 1], (3, 2)), random.uniform([0, -100], [1, -99], (3, 2))]
    points = np.vstack([mainland, large, *islands])
    groups = np.repeat(np.arange(4), [900, 94, 3, 3])
    moved = _with_islands_near(points, csr_array(groups[:, None] == groups))
    assert (moved[:994] == points[:994]).all()
    for group, axis in ((2, 0), (3, 1)):
        before, after = points[groups == group], moved[groups == group]
        np.testing.assert_allclose(after - after[0], before - before[0], atol=1e-9)
        assert np.abs(after[:, 1 - axis]).max() < 1  # in the same direction
        assert 1 < np.abs(after[:, axis]).max() < 0.1 * np.abs(before[:, axis]).max()
    assert np.abs(moved[groups == 3]).max() > np.abs(moved[groups == 2]).max()  # still the farthest


@pytest.mark.slow
def test_umap_keeps_groups_together() -> None:
    groups = np.arange(60) % 3
    vectors = unit(np.eye(8)[groups] + 0.1 * random_vectors(60))
    points = project(vectors, 0)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (groups[distances.argmin(axis=1)] == groups).all()
    assert (project(vectors, 0) == points).all()
    assert not np.array_equal(project(vectors, 1), points)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [16, 40])
def test_umap_places_equal_vectors(rows: int) -> None:
    assert np.isfinite(project(np.repeat(random_vectors(1), rows, axis=0), 0)).all()


@pytest.mark.slow
def test_many_vectors_are_projected_with_approximate_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "EXACT_ROWS", 40)
    groups = np.arange(60) % 3
    points = project(unit(np.eye(8)[groups] + 0.1 * random_vectors(60)), 0)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (groups[distances.argmin(axis=1)] == groups).all()
