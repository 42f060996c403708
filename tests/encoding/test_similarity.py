"""`Encoder.similarity` agrees with sentence-transformers' functions; which one a checkpoint names is tested there."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from sentence_transformers.util import SimilarityFunction

from fastvec.checkpoints.sentence_transformers import Similarity
from fastvec.encoding.similarity import similarities
from fastvec.errors import UsageError

GENERATOR = np.random.default_rng(0)
A = GENERATOR.standard_normal((40, 16)).astype(np.float32)
B = np.concatenate([GENERATOR.standard_normal((30, 16)).astype(np.float32), A[:3], np.zeros((1, 16), np.float32)])


@pytest.mark.parametrize("function", get_args(Similarity))
def test_it_is_sentence_transformers_function(function: Similarity) -> None:
    theirs: Any = SimilarityFunction.to_similarity_fn(function)
    found = similarities(A, B, function)
    assert found.dtype == np.float32
    # float32 has 24 bits, and 16 products are added; torch subtracts squares in the distance of equal vectors
    rounding = 16 * 2.0**-24 * np.abs(theirs(A, B).numpy()).max()
    bound = np.sqrt(rounding) * 4 if function == "euclidean" else rounding * 4
    assert np.abs(found - theirs(A, B).numpy()).max() <= bound


def test_the_distance_of_equal_vectors_is_zero() -> None:
    assert np.abs(np.diag(similarities(A, A, "euclidean"))).max() < 1e-6


def test_one_vector_is_a_matrix_of_one_row() -> None:
    assert np.array_equal(similarities(A[0], B, "dot"), similarities(A[:1], B, "dot"))
    assert similarities(A[0].tolist(), torch.from_numpy(B[0]), "cosine").shape == (1, 1)
    assert similarities(A[:0], B, "manhattan").shape == (0, len(B))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (A, B[:, :8], "vectors of 16 and of 8 dimensions cannot be compared"),
        (A[None], B, r"expected vectors of shape \[D\] or \[n, D\], got an array of 3 dimensions"),
        (["a text"], B, "expected vectors as an array or tensor of numbers, got a list"),
    ],
)
def test_other_shapes_are_refused(a: Any, b: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        similarities(a, b, "cosine")
