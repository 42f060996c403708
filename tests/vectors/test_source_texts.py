"""Texts are found in the inputs: of rows of any file, format, template and passage; and not in changed ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, embed, merge
from fastvec.errors import InputError
from fastvec.vectors import source_texts
from fastvec.vectors.source_texts import texts_at
from fastvec.vectors.stored import open_vectors
from tests import ARTICLES

TEXTS = [f"text {number}" for number in range(50)]


def found(outputs: list[Path], positions: list[int]) -> list[str | None]:
    with open_vectors(outputs) as vectors:
        return texts_at(vectors, np.array(positions))


@pytest.mark.parametrize("near", [0, 7, 1000])
def test_texts_of_several_files_and_formats(
    tmp_path: Path, model: Encoder, near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_texts, "NEAR_ROWS", near)
    pq.write_table(pa.table({"text": TEXTS[:20]}), tmp_path / "a.parquet", row_group_size=6)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[20:]))
    files = [tmp_path / name for name in ("a.parquet", "b.parquet", "c.jsonl")]
    embed(files, tmp_path / "vecs.arrow", encoder=model)
    positions = [49, 0, 19, 20, 5, 5, 21]
    assert found([tmp_path / "vecs.arrow"], positions) == [TEXTS[i] for i in positions]
    assert found([tmp_path / "vecs.arrow"], []) == []


def test_only_files_with_one_of_the_rows_are_opened(tmp_path: Path, model: Encoder) -> None:
    for name in ("a", "b"):
        pq.write_table(pa.table({"text": [f"{name} {i}" for i in range(5)]}), tmp_path / f"{name}.parquet")
    embed([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "vecs.arrow", encoder=model)
    (tmp_path / "a.parquet").unlink()
    assert found([tmp_path / "vecs.arrow"], [7]) == ["b 2"]
    with pytest.raises(InputError, match=r"a\.parquet"):
        found([tmp_path / "vecs.arrow"], [7, 1])


def test_a_template_null_texts_and_a_limit(tmp_path: Path, model: Encoder) -> None:
    pq.write_table(pa.table({"title": ["x", "y", "z"], "text": ["1", None, "3"]}), tmp_path / "a.parquet")
    embed([tmp_path / "a.parquet"], tmp_path / "made.arrow", encoder=model, template="{title}: {text}", limit=2)
    embed([tmp_path / "a.parquet"], tmp_path / "plain.arrow", encoder=model, column="text")
    assert found([tmp_path / "made.arrow"], [0]) == ["x: 1"]
    assert found([tmp_path / "plain.arrow"], [1, 2]) == [None, "3"]


def test_a_template_of_a_column_alone_is_one(tmp_path: Path, model: Encoder) -> None:
    """It takes a column of numbers, which `column` does not."""
    pq.write_table(pa.table({"year": [1999, None, 2001], "text": ["1", None, "3"]}), tmp_path / "a.parquet")
    for column in ("year", "text"):
        embed([tmp_path / "a.parquet"], tmp_path / f"{column}.arrow", encoder=model, template=f"{{{column}}}")
    assert found([tmp_path / "year.arrow"], [0, 1, 2]) == ["1999", None, "2001"]
    assert found([tmp_path / "text.arrow"], [0, 2]) == ["1", "3"]


@pytest.mark.parametrize("chunk_text", [False, True])
def test_a_passage_is_cut_out_of_its_text(tmp_path: Path, model: Encoder, chunk_text: bool) -> None:
    output = tmp_path / "vecs.arrow"
    copy = tmp_path / "articles.parquet"
    shutil.copy(ARTICLES, copy)
    embed([copy], output, encoder=model, column="text", long="chunks", chunk_tokens=30, limit=5, chunk_text=chunk_text)
    whole = pq.read_table(ARTICLES)["text"].to_pylist()
    with open_vectors([output]) as vectors:
        assert vectors.rows > 10
        places = vectors.take(np.arange(vectors.rows), ["row", "char_start", "char_end"]).to_pylist()
        if chunk_text:
            copy.unlink()  # it is not needed
        texts = texts_at(vectors, np.arange(vectors.rows))
    assert texts == [whole[place["row"]][place["char_start"] : place["char_end"]] for place in places]


def test_texts_of_shards_and_of_merged_outputs(articles_in_shards: Path, model: Encoder, tmp_path: Path) -> None:
    whole = pq.read_table(ARTICLES)["text"].to_pylist()
    assert found([articles_in_shards], [299, 0, 61]) == [whole[i] for i in (299, 0, 61)]
    for name in ("a", "b"):
        pq.write_table(pa.table({"text": [f"{name} {i}" for i in range(5)]}), tmp_path / f"{name}.parquet")
        embed([tmp_path / f"{name}.parquet"], tmp_path / f"{name}.arrow", encoder=model)
    merge([tmp_path / "a.arrow", tmp_path / "b.arrow"], tmp_path / "both.arrow")
    assert found([tmp_path / "both.arrow"], [4, 5]) == ["a 4", "b 0"]
    assert found([tmp_path / "b.arrow", tmp_path / "a.arrow"], [4, 5]) == ["b 4", "a 0"]


def test_a_changed_input_is_refused(tmp_path: Path, model: Encoder) -> None:
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet")
    embed([tmp_path / "a.parquet"], tmp_path / "vecs.arrow", encoder=model)
    pq.write_table(pa.table({"text": TEXTS[::-1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet has another size or date than when"):
        found([tmp_path / "vecs.arrow"], [3])


def test_joined_outputs_of_different_columns_have_no_known_texts(tmp_path: Path, model: Encoder) -> None:
    for name in ("a", "b"):
        pq.write_table(pa.table({name: TEXTS[:3]}), tmp_path / f"{name}.parquet")
        embed([tmp_path / f"{name}.parquet"], tmp_path / f"{name}.arrow", encoder=model)
    merge([tmp_path / "a.arrow", tmp_path / "b.arrow"], tmp_path / "both.arrow")
    with pytest.raises(InputError, match="does not say which column its texts are"):
        found([tmp_path / "both.arrow"], [0])


def test_each_column_of_vectors_has_its_own_texts(tmp_path: Path, model: Encoder) -> None:
    pq.write_table(pa.table({"one": ["a", "b"], "two": ["c", "d"]}), tmp_path / "a.parquet")
    embed([tmp_path / "a.parquet"], tmp_path / "vecs.arrow", encoder=model, column=["one", "two"])
    with open_vectors([tmp_path / "vecs.arrow"], vector_column="embedding_two") as vectors:
        assert texts_at(vectors, np.array([1, 0])) == ["d", "c"]
