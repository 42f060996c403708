import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import Chunk, ChunkLimits
from fastvec.errors import InputError
from fastvec.training import stream
from fastvec.training.stream import BLOCK_EXAMPLES, ExampleStream, Place
from tests.helpers.corpora import read_texts, texts, write_parquet

ROWS = 200


def numbers_of(chunk: Chunk, admitted: npt.NDArray[np.bool_]) -> list[int]:
    """Make two examples per row, so that tests distinguish rows from examples."""
    values = [int(text) for text, used in zip(chunk.texts.to_pylist(), admitted, strict=True) if used]
    return [example for value in values for example in (2 * value, 2 * value + 1)]


@pytest.fixture
def numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExampleStream[int]:
    """The numbers below 200 as rows of two files: row groups of 30, chunks of 7 rows, blocks of 25 examples."""
    for name, value in {"BLOCK_EXAMPLES": 25, "OPEN_STRETCHES": 2, "STRETCH_ROWS": 20}.items():
        monkeypatch.setattr(stream, name, value)
    monkeypatch.setattr(stream, "LIMITS", ChunkLimits(rows=7, bytes=1 << 20))
    for name, first, end in (("a", 0, 110), ("b", 110, ROWS)):
        write_parquet(tmp_path / f"{name}.parquet", texts([str(i) for i in range(first, end)]), group_rows=30)
    return ExampleStream(open_corpus([tmp_path]), numbers_of, seed=3, hold_out=0.1)


def taken(numbers: ExampleStream[int], count: int, start: int = 0, near: Place | None = None) -> list[int]:
    examples = numbers.examples(start, near)
    return [next(examples) for _ in range(count)]


def test_an_epoch_is_every_row_that_is_not_held_out_once_and_shuffled(numbers: ExampleStream[int]) -> None:
    held_out = numbers.held_out(10**6)
    size = 2 * ROWS - len(held_out)
    first, second = np.array_split(taken(numbers, 2 * size), 2)
    assert 0.04 < len(held_out) / (2 * ROWS) < 0.2
    for epoch in (first.tolist(), second.tolist()):
        assert Counter(epoch) == Counter(set(range(2 * ROWS)) - set(held_out))
        assert epoch != sorted(epoch)
        assert np.abs(np.diff(epoch)).mean() > 20  # neighbouring examples come from anywhere in a block
    assert first.tolist() != second.tolist()
    groups = list(dict.fromkeys((first // 60).tolist()))
    assert groups != sorted(groups)  # as they would be if read in corpus order


def test_a_run_goes_on_at_any_example_from_any_place_before_it(numbers: ExampleStream[int]) -> None:
    whole = taken(numbers, 700)
    for start in (0, 1, 24, 25, 130, 360, 500):
        near = numbers.place_before(start)
        assert near.example <= start
        assert Place.from_json(json.loads(json.dumps(near.to_json()))) == near
        assert taken(numbers, 40, start, near) == whole[start : start + 40]
    assert numbers.place_before(500).epoch == 1
    assert numbers.place_before(500).example > 400  # at most one block is read again


def test_each_block_is_arranged_in_whole_batches_after_the_rest_of_one_begun_before(
    numbers: ExampleStream[int],
) -> None:
    """Here in ascending order: the stream must take it as it is, and say how many examples complete a batch."""
    seen: list[tuple[int, int]] = []

    def ascending(examples: Sequence[int], lead: int, size: int, _: np.random.Generator) -> npt.NDArray[np.integer]:
        seen.append((len(examples), lead))
        assert size == 16
        return np.argsort(examples)

    numbers.arrange, numbers.batch = ascending, 16
    found = taken(numbers, 200)
    begin = 0
    for length, lead in seen:
        block = found[begin : begin + length]
        assert block == sorted(block)
        assert 0 <= lead < 16
        assert (begin + lead) % 16 == 0
        begin += length
    assert begin >= 200
    assert len({lead for _, lead in seen}) > 1
    assert taken(numbers, 30, 190, numbers.place_before(190))[:10] == found[190:]


def test_the_seed_decides_order_and_held_out_rows(numbers: ExampleStream[int]) -> None:
    other = ExampleStream(numbers.corpus, numbers_of, seed=4, hold_out=0.1)
    assert taken(other, 50) != taken(numbers, 50)
    assert set(other.held_out(10**6)) != set(numbers.held_out(10**6))
    assert taken(ExampleStream(numbers.corpus, numbers_of, seed=3, hold_out=0.1), 50) == taken(numbers, 50)


def test_a_small_corpus_gives_a_few_rows_to_hold_out_and_none_where_none_is_asked_for(
    numbers: ExampleStream[int],
) -> None:
    few = ExampleStream(numbers.corpus, numbers_of, seed=0, hold_out=0.0001)
    assert 2 <= len(few.held_out(10**6)) / 2 <= 20
    assert ExampleStream(numbers.corpus, numbers_of, seed=0, hold_out=0.0).held_out(10**6) == []
    assert len(numbers.held_out(5)) == 5


def test_too_little_data_for_a_batch_is_said(numbers: ExampleStream[int]) -> None:
    numbers.batch = 1000
    with pytest.raises(InputError, match=r"too little data: it has 3\d\d examples besides .*, and a batch needs 1000"):
        taken(numbers, 1000)


def test_a_sorted_corpus_is_mixed_within_one_row_group(tmp_path: Path) -> None:
    """Eight of 16 stretches of 4,096 rows are read in turn, 1,024 rows of each: two blocks of examples."""
    rows = 16 * 4096
    write_parquet(tmp_path / "sorted.parquet", texts([str(i) for i in range(rows)]), group_rows=rows)
    whole = ExampleStream(open_corpus([tmp_path]), numbers_of, seed=0, hold_out=0.0)

    stretches = np.array(taken(whole, 2 * BLOCK_EXAMPLES)) // (2 * 4096)

    counts = np.bincount(stretches, minlength=16)
    assert np.sort(counts).tolist() == [0] * 8 + [2048] * 8
    assert (counts > 0).tolist() != [True] * 8 + [False] * 8
    assert len(set(stretches[:100])) == 4  # a block, two examples per row, covers 4 chunks and is shuffled


@pytest.mark.parametrize(
    ("content", "expected"), [("\ufeff", [""]), ("\ufeffone\ntwo\n\ufeffthree", ["one", "two", "\ufeffthree"])]
)
def test_a_byte_order_mark_is_no_part_of_the_first_text(tmp_path: Path, content: str, expected: list[str]) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content, encoding="utf-8")
    assert read_texts(path) == expected
    assert open_corpus([path]).rows == len(expected)
