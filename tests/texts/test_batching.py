import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvec.texts.batching import chunk_limits, is_long_job, row_multiple, token_batches, token_budget


def test_texts_of_like_length_share_a_batch_and_the_batches_are_even() -> None:
    lengths = np.array([3, 9, 1, 4, 8, 2, 7, 6])

    batches = token_batches(lengths, budget=20)

    assert [batch.tolist() for batch in batches] == [[1], [4, 6], [7, 3, 0, 5, 2]]
    assert [int(lengths[batch].sum()) for batch in batches] == [9, 15, 16]


def test_no_small_last_batch() -> None:
    batches = token_batches(np.full(101, 10), budget=1000)
    assert [len(batch) for batch in batches] == [51, 50]


def test_a_text_over_the_budget_is_alone() -> None:
    assert [batch.tolist() for batch in token_batches(np.array([2, 50, 3]), budget=10)] == [[1], [2, 0]]


@pytest.mark.parametrize(
    ("device", "parameters", "bytes_a_number", "tokens"),
    [
        ("cpu", 25_000_000, 2, 4096),
        ("cpu", 25_000_000, 4, 2048),
        ("cuda", 600_000_000, 2, 32_768),
        ("cuda", 30_000_000, 2, 100_000),  # more tokens for a small model: launches take as long as for a large one
        ("cuda", 30_000_000, 4, 50_000),
        ("cuda", 1_000_000, 2, 131_072),
    ],
)
def test_a_forward_has_work_enough(device: str, parameters: int, bytes_a_number: int, tokens: int) -> None:
    assert token_budget(device, parameters, bytes_a_number) == tokens


@pytest.mark.parametrize(
    ("tokens", "multiple"), [(1, 1), (31, 1), (32, 2), (100, 4), (500, 16), (1024, 64), (4096, 64), (100_000, 64)]
)
def test_a_batch_on_a_cpu_is_padded_by_less_than_a_sixteenth(tokens: int, multiple: int) -> None:
    assert row_multiple("cpu", tokens) == multiple
    assert (multiple - 1) * 16 <= tokens
    assert row_multiple("cuda", tokens) == 1


def test_a_long_text_counts_in_a_chunk_as_far_as_it_is_encoded() -> None:
    limits = chunk_limits("cpu", 25_000_000, max_length=512)
    assert limits["row_bytes"] == 2048
    assert limits["bytes"] >= 16 * limits["row_bytes"]


def test_a_job_is_long_by_the_work_of_its_texts() -> None:
    assert not is_long_job("cpu", 25_000_000, 100_000)
    assert is_long_job("cpu", 25_000_000, 1_000_000)
    assert is_long_job("cpu", 600_000_000, 100_000)


def test_no_texts_no_batches() -> None:
    assert token_batches(np.array([], dtype=np.int64), budget=10) == []


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        token_batches(np.array([1]), budget=0)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=200), st.integers(1, 2000))
def test_every_text_once_within_the_budget_longest_first(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths)
    batches = token_batches(sizes, budget)

    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (np.diff(sizes[order]) <= 0).all()
    assert all(len(batch) == 1 or sizes[batch].sum() <= budget for batch in batches)


def test_batching_imports_no_torch() -> None:
    script = "import sys, fastvec.texts.batching; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
