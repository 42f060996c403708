"""Texts are found in the inputs: of rows of any file, format, template and passage; and not in changed ones."""

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, embed, merge
from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import Corpus
from fastvec.errors import InputError
from fastvec.vectors.source_texts import texts_at
from fastvec.vectors.stored import open_vectors
from tests import ARTICLES

TEXTS = [f"text {number}" for number in range(50)]


def found(outputs: list[Path], positions: list[int]) -> list[str | None]:
    with open_vectors(outputs) as vectors:
        return texts_at(vectors, np.array(positions))


def test_texts_of_several_files_and_formats(tmp_path: Path, model: Encoder) -> None:
    pq.write_table(pa.table({"text": TEXTS[:20]}), tmp_path / "a.parquet", row_group_size=6)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[20:]))
    files = [tmp_path / name for name in ("a.parquet", "b.parquet", "c.jsonl")]
    embed(files, tmp_path / "vecs.arrow", encoder=model)
    positions = [49, 0, 19, 20, 5, 5, 21]
    assert found([tmp_path / "vecs.arrow"], positions) == [TEXTS[i] for i in positions]
    assert found([tmp_path / "vecs.arrow"], []) == []


@pytest.mark.parametrize(
    ("name", "ranges"),
    [
        ("a.parquet", [(3, 9), (28, 28), (49, 49)]),  # row groups of 6, of which those without a row are left out
        ("a.arrow", [(3, 9), (28, 28), (49, 49)]),
        ("a.arrows", [(3, 49)]),
        ("a.jsonl", [(3, 9), (28, 28), (49, 49)]),
        ("a.jsonl.gz", [(3, 49)]),
        ("a.csv", [(3, 49)]),
    ],
)
def test_a_file_is_opened_once_and_no_row_read_twice(
    name: str, ranges: list[tuple[int, int]], tmp_path: Path, model: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastvec.corpus.formats.lines.GROUP_LINES", 6)
    table = pa.table({"text": TEXTS})
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    match name.partition(".")[2]:
        case "parquet":
            pq.write_table(table, tmp_path / name, row_group_size=6)
        case "arrow" | "arrows":
            new = ipc.new_file if name == "a.arrow" else ipc.new_stream
            with new(tmp_path / name, table.schema) as writer:
                writer.write_table(table, 6)
        case "csv":
            (tmp_path / name).write_text("\n".join(["text", *TEXTS]) + "\n")
        case "jsonl":
            (tmp_path / name).write_text(lines)
        case "jsonl.gz":
            (tmp_path / name).write_bytes(gzip.compress(lines.encode()))
    embed([tmp_path / name], tmp_path / "vecs.arrow", encoder=model)
    read, opened, chunks = [], [], Corpus.chunks

    def recorded(self: Corpus, *limits: Any, first_row: int, end_row: int) -> Any:
        read.append((first_row, end_row - 1))
        return chunks(self, *limits, first_row=first_row, end_row=end_row)

    def counted(*arguments: Any, **options: Any) -> Corpus:
        opened.append(arguments)
        return open_corpus(*arguments, **options)

    monkeypatch.setattr(Corpus, "chunks", recorded)
    monkeypatch.setattr("fastvec.vectors.source_texts.open_corpus", counted)
    positions = [49, 3, 9, 28]
    with open_vectors([tmp_path / "vecs.arrow"]) as vectors:
        for _ in range(2):
            assert texts_at(vectors, np.array(positions)) == [TEXTS[row] for row in positions]
    assert read == ranges * 2
    assert len(opened) == 1


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


def test_texts_of_standard_input_are_not_kept(tmp_path: Path, model: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    with (tmp_path / "texts.txt").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        embed(["-"], tmp_path / "vecs.arrow", encoder=model)
    with pytest.raises(InputError, match="the texts were read from standard input, which is not kept"):
        found([tmp_path / "vecs.arrow"], [1])


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
