import numpy as np
import pytest

from fastvec.pairs.components import Components


@pytest.mark.parametrize("seed", range(5))
def test_components_are_those_of_one_pair_after_another(seed: int) -> None:
    random, rows = np.random.default_rng(seed), 200
    components, labels = Components(rows), np.arange(rows)
    for _ in range(8):
        a, b = random.integers(0, rows, (2, random.integers(0, 40)))
        components.join(a, b)
        for left, right in zip(a, b, strict=True):
            both = labels[[left, right]]
            labels[np.isin(labels, both)] = both.min()
        some = random.permutation(rows)[:50]
        assert np.array_equal(components.roots(some), labels[some])
    assert np.array_equal(components.roots(np.arange(rows)), labels)


@pytest.mark.parametrize("at_once", [1, 100, 20_000])
def test_a_long_chain_is_one_component(at_once: int) -> None:
    rows = 2000 if at_once == 1 else 20_000
    components = Components(rows)
    for end in range(rows - 1, 0, -at_once):  # from the end, so that each root is put below a new one
        later = np.arange(max(end - at_once, 0) + 1, end + 1)
        components.join(later, later - 1)
    assert np.array_equal(components.roots(np.arange(rows)), np.zeros(rows))
