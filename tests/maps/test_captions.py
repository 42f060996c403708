from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fastvec
from fastvec import Encoder
from fastvec.errors import UsageError
from fastvec.maps.captions import READ_CHARACTERS, read_captions
from fastvec.vectors.stored import open_vectors
from tests.maps.outputs import random_vectors, write_vectors

ROWS = np.array([0, 2])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = ["Whale\n\nWhale is a mammal.", None, "Bread " * 1000]
    titles = pa.array(["Whale", "Nothing", None])
    pq.write_table(pa.table({"id": [7, 8, 9], "title": titles, "text": texts}), tmp_path / "corpus.parquet")
    return tmp_path / "corpus.parquet"


def test_texts_are_those_of_the_inputs(corpus: Path, encoder: Encoder) -> None:
    vecs = corpus.with_name("vecs.arrow")
    fastvec.embed(corpus, vecs, encoder=encoder, column="text", keep=["id", "title"])
    with open_vectors([vecs]) as vectors:
        captions = read_captions(vectors, ROWS, None)
        assert captions.titles == ("Whale", "")
        assert captions.texts == ("Whale is a mammal.", ("Bread " * 1000)[:READ_CHARACTERS].strip())
        assert captions.places == ("row 0", "row 2")
        assert captions.note == ""
        assert read_captions(vectors, ROWS, "id").titles == ("7", "9")
        corpus.unlink()
        captions = read_captions(vectors, ROWS, None)
    assert captions.titles == ("Whale", "")
    assert captions.texts == ("", "")
    assert captions.note.startswith("kept columns are shown instead of texts: ")
    assert "\n" not in captions.note


def test_kept_columns_and_row_numbers_stand_in_for_texts(tmp_path: Path) -> None:
    vectors = random_vectors(3)
    kept = {"text": pa.array(["A", "B", "C"]), "Name": pa.array(["x", "y", "z"]), "n": pa.array([1, 2, 3])}
    with open_vectors([write_vectors(tmp_path / "a.arrow", vectors, **kept)]) as opened:
        captions = read_captions(opened, ROWS, None)
        assert (captions.titles, captions.texts) == (("x", "z"), ("A", "C"))
    with open_vectors([write_vectors(tmp_path / "b.arrow", vectors)]) as opened:
        captions = read_captions(opened, ROWS, None)
    assert (captions.titles, captions.texts, captions.places) == (("", ""), ("", ""), ("row 0", "row 2"))
    assert captions.note.startswith("row numbers are shown instead of texts: ")


def test_a_column_of_texts_is_not_taken_for_titles(tmp_path: Path) -> None:
    vectors = random_vectors(3)
    texts, others = pa.array(["A", "B", "C"]), pa.array(["x", "y", "z"])
    with open_vectors([write_vectors(tmp_path / "a.arrow", vectors, text=texts)]) as opened:
        assert read_captions(opened, ROWS, None).titles == ("", "")
    with open_vectors([write_vectors(tmp_path / "b.arrow", vectors, text=texts, note=others)]) as opened:
        assert read_captions(opened, ROWS, None).titles == ("x", "z")


def test_places_name_the_output_if_there_are_several(tmp_path: Path) -> None:
    vectors = random_vectors(3)
    a, b = (write_vectors(tmp_path / f"{name}.arrow", vectors) for name in "ab")
    with open_vectors([a, b]) as opened:
        assert read_captions(opened, np.array([2, 4]), None).places == (f"{a}, row 2", f"{b}, row 1")
    with open_vectors([a]) as opened:
        assert read_captions(opened, np.array([2]), None).places == ("row 2",)


def test_a_column_that_was_not_kept_is_named(tmp_path: Path) -> None:
    path = write_vectors(tmp_path / "a.arrow", random_vectors(3), name=pa.array(["x", "y", "z"]))
    with open_vectors([path]) as opened, pytest.raises(UsageError) as raised:
        read_captions(opened, ROWS, "title")
    expected = f"--label title: {path} has no such column, the kept columns are name: embed with --keep title"
    assert str(raised.value) == expected
