import numpy as np
import pytest
import torch

from fastvec.texts.packing import pack, pack_flat


def test_sequences_lie_end_to_end_with_their_own_positions() -> None:
    packed = pack([np.array([7, 8, 9]), np.array([5]), np.array([6, 4])], np.array([[1, 3], [0, 1], [0, 2]]))

    assert packed.token_ids.tolist() == [7, 8, 9, 5, 6, 4]
    assert packed.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert packed.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert packed.spans.tolist() == [[1, 3], [3, 4], [4, 6]]
    assert packed.lengths == (3, 1, 2)
    dtypes = [packed.token_ids.dtype, packed.positions.dtype, packed.cu_seqlens.dtype, packed.spans.dtype]
    assert dtypes == [torch.int64, torch.int64, torch.int32, torch.int64]


def test_without_spans_all_tokens_are_pooled() -> None:
    assert pack([np.array([1, 2]), np.array([3])]).spans.tolist() == [[0, 2], [2, 3]]


@pytest.mark.parametrize(("multiple", "added"), [(1, 0), (5, 0), (8, 3)])
def test_a_batch_is_filled_up_by_tokens_that_are_not_pooled(multiple: int, added: int) -> None:
    ids, lengths, spans = np.array([7, 8, 9, 5, 6]), np.array([3, 2]), np.array([[0, 3], [1, 2]])
    packed = pack_flat(ids, lengths, spans, device="cpu", multiple=multiple)
    assert packed.token_ids.tolist() == [7, 8, 9, 5, 6] + [0] * added
    assert packed.positions.tolist() == [0, 1, 2, 0, 1] + [0] * added
    assert packed.lengths == (3, 2) + (1,) * added
    assert packed.spans.tolist() == [[0, 3], [4, 5]]


def test_spans_and_lengths_stay_on_the_host() -> None:
    packed = pack([np.array([1, 2]), np.array([3])], device="meta")
    assert [x.device.type for x in (packed.token_ids, packed.positions, packed.cu_seqlens)] == ["meta"] * 3
    assert packed.spans.tolist() == [[0, 2], [2, 3]]
    assert packed.lengths == (2, 1)


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one token, got lengths \[2, 0\]"):
        pack([np.array([1, 2]), np.array([], dtype=np.int64)])


@pytest.mark.parametrize("span", [[1, 1], [0, 3], [-1, 1]])
def test_a_span_outside_its_sequence_is_refused(span: list[int]) -> None:
    with pytest.raises(ValueError, match="non-empty span inside each sequence"):
        pack([np.array([1, 2])], np.array([span]))
