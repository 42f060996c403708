import json
from pathlib import Path
from typing import Any

import pytest

from fastvec.corpus.opening import open_corpus
from fastvec.training.stream import ExampleStream, Place
from fastvec.training.trainer import Batches, newest_checkpoint
from fastvec.training.work_folder import PLACE
from tests.helpers.corpora import texts, write_parquet


def texts_of(chunk: Any, admitted: Any) -> list[str]:
    return [text for text, used in zip(chunk.texts.to_pylist(), admitted, strict=True) if used]


def batches(folder: Path, *, rank: int = 0, ranks: int = 1, size: int = 4) -> Batches:
    """Batches from two data sets of 30 and 90 rows."""
    streams = []
    for name, rows in (("a", 30), ("b", 90)):
        path = write_parquet(folder / f"{name}.parquet", texts([f"{name}{i}" for i in range(rows)]), group_rows=16)
        streams.append(ExampleStream(open_corpus([path]), texts_of, seed=1, hold_out=0.0))
    return Batches(streams, size=size, rank=rank, ranks=ranks, seed=1)


def taken(source: Batches, count: int) -> list[list[str]]:
    iterator = iter(source)
    return [list(next(iterator).examples) for _ in range(count)]


def test_each_batch_is_of_one_data_set_in_proportion_to_their_rows(tmp_path: Path) -> None:
    found = taken(batches(tmp_path), 200)
    sources = ["".join({text[0] for text in batch}) for batch in found]
    assert set(sources) == {"a", "b"}
    assert sources.count("b") / 200 == pytest.approx(0.75, abs=0.1)


def test_a_run_goes_on_at_any_step(tmp_path: Path) -> None:
    whole = batches(tmp_path)
    found = taken(whole, 60)
    for step in (0, 1, 17, 40):
        later = batches(tmp_path)
        later.start, later.near = step, [Place.from_json(place.to_json()) for place in whole.places(step)]
        assert taken(later, 5) == found[step : step + 5]


def test_ranks_see_one_batch_and_have_their_own_part(tmp_path: Path) -> None:
    pairs = [next(iter(batches(tmp_path, rank=rank, ranks=2, size=4))) for rank in range(2)]
    assert pairs[0].examples == pairs[1].examples
    assert len(pairs[0].examples) == 8
    assert [list(pair.own) for pair in pairs] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    place = Place(example=7, begun=3, unread=((2, 5), (30, 31)))
    for step in (90, 100, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (90, 100):
        (tmp_path / f"checkpoint-{step}" / PLACE).write_text(json.dumps([place.to_json()]))
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-100", 100, [place])
