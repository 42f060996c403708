from typing import get_args

import numpy as np
import pytest

from fastvec.checkpoints.sentence_transformers import Similarity
from fastvec.encoding.similarity import similarities
from fastvec.evaluation.contestants import comparable, pairwise


@pytest.mark.parametrize("function", get_args(Similarity))
def test_pairs_and_searches_compare_as_the_checkpoint_says(function: Similarity) -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 20, 6)).astype(np.float32)
    expected = similarities(first, second, function)
    assert pairwise(first, second, function) == pytest.approx(np.diag(expected), rel=1e-5, abs=1e-6)
    if function == "manhattan":
        with pytest.raises(ValueError, match="Manhattan distance"):
            comparable(first, second, function)
    else:
        queries, documents = comparable(first, second, function)
        assert (np.argsort(queries @ documents.T, axis=1) == np.argsort(expected, axis=1)).all()
