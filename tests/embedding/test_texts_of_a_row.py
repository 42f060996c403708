"""What is embedded of a row: a template, several columns, an instruction of its own; and equal texts, once."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, convert, embed, merge
from fastvec.errors import RefusedError, UsageError
from fastvec.output.inspect import inspect
from fastvec.output.verify import verify
from tests.helpers.corpora import write_parquet
from tests.helpers.outputs import read_output


def vectors(output: Path, column: str = "embedding") -> np.ndarray:
    """Return the vectors [rows, D] of an output; those of null rows are NaN."""
    values = read_output(output)[column].combine_chunks()
    return np.array([np.full(values.type.list_size, np.nan) if v is None else v for v in values.to_pylist()])


def metadata(output: Path) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in read_output(output).schema.metadata.items()}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = {"title": ["Sea", None, "Sky", "Sea"], "text": ["salt water", "no title", None, "salt water"]}
    return write_parquet(tmp_path / "corpus.parquet", pa.table(rows))


def test_a_template_is_recorded_and_identifies_the_job(encoder: Encoder, corpus: Path, output: Path) -> None:
    embed([corpus], output, encoder=encoder, template="{title}: {text}")
    expected = encoder.encode(["Sea: salt water", ": no title", "Sky: ", "Sea: salt water"])
    assert np.abs(vectors(output) - expected).max() < 1e-6
    assert metadata(output)["fastvec.template"] == "{title}: {text}"
    assert "fastvec.column" not in metadata(output)
    with pytest.raises(RefusedError, match=r'template was "{title}: {text}", now "{text} "'):
        embed([corpus], output, encoder=encoder, template="{text} ")


@pytest.mark.parametrize("chunk_rows", [1, 2, 40])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_several_columns_give_a_row_several_vectors(
    encoder: Encoder, corpus: Path, output: Path, chunk_rows: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": chunk_rows, "bytes": 16_000})
    report = embed([corpus], output, encoder=encoder, column=["title", "text"], keep=["text"], vector_dtype=dtype)
    assert read_output(output).column_names == ["text", "row", "embedding_title", "embedding_text"]
    assert (report.rows, report.nulls) == (4, 2)
    assert json.loads(metadata(output)["fastvec.column"]) == ["title", "text"]
    titles, texts = vectors(output, "embedding_title"), vectors(output, "embedding_text")
    assert np.isnan(titles).all(axis=1).tolist() == [False, True, False, False]
    assert np.isnan(texts).all(axis=1).tolist() == [False, False, True, False]
    assert verify(output).return_code == 0
    assert "embedding_title and embedding_text, 64 dimensions" in str(inspect(output))
    assert "4, 2 vectors missing" in str(inspect(output))
    if dtype == "float32":
        assert np.abs(titles[[0, 2, 3]] - encoder.encode(["Sea", "Sky", "Sea"])).max() < 1e-6
        assert np.abs(texts[[0, 1, 3]] - encoder.encode(["salt water", "no title", "salt water"])).max() < 1e-6


def test_an_output_with_several_vectors_a_row_is_converted_and_merged(
    encoder: Encoder, corpus: Path, output: Path, tmp_path: Path
) -> None:
    embed([corpus], output, encoder=encoder, column=["title", "text"])
    twice, parquet, array = (tmp_path / name for name in ("twice.arrow", "twice.parquet", "titles.npy"))
    other = tmp_path / "other.arrow"
    embed([corpus], other, encoder=encoder, column=["title", "text"], limit=3)
    merge([output, other], twice)
    convert(twice, parquet)
    assert verify(twice).return_code == verify(parquet).return_code == 0
    assert pq.read_table(parquet).equals(read_output(twice))
    with pytest.raises(UsageError, match="one column of vectors: choose embedding_title or embedding_text with --vec"):
        convert(twice, array)
    convert(twice, array, vector_column="embedding_title")
    assert np.load(tmp_path / "titles.rows.npy").tolist() == [0, 2, 3, 4, 6]
    assert (np.load(array) == vectors(twice, "embedding_title")[[0, 2, 3, 4, 6]].astype(np.float32)).all()


def test_a_vector_column_may_not_take_the_name_of_a_kept_one(encoder: Encoder, tmp_path: Path, output: Path) -> None:
    path = write_parquet(tmp_path / "c.parquet", pa.table({"a": ["x"], "b": ["y"], "embedding_b": [1]}))
    with pytest.raises(UsageError, match="kept column 'embedding_b' has the name of an output column"):
        embed([path], output, encoder=encoder, column=["a", "b"], keep=None)
    embed([path], output, encoder=encoder, column="a", keep=None)


def test_a_row_brings_its_own_instruction(encoder: Encoder, tmp_path: Path, output: Path) -> None:
    rows = {
        "text": ["a", "b", "a", "c", None, "a", "d"],
        "how": ["Find:", None, "Sort:", "Find:", "Find:", "Find:", "x" * 9999],
    }
    path = write_parquet(tmp_path / "c.parquet", pa.table(rows))
    report = embed([path], output, encoder=encoder, column="text", instruction_column="how")
    assert (report.nulls, report.errors, report.duplicates) == (1, 1, 1)
    assert json.loads((tmp_path / "vecs.errors.jsonl").read_text())["code"] == "instruction_too_long"
    found = vectors(output)
    for row, (text, how) in enumerate(zip(rows["text"], rows["how"], strict=True)):
        if row in (4, 6):
            assert np.isnan(found[row]).all()
        else:
            assert text is not None
            assert np.abs(found[row] - encoder.encode([text], instruction=how)[0]).max() < 1e-6
    assert metadata(output)["fastvec.instruction_column"] == "how"
    with pytest.raises(
        UsageError, match="a column of instructions was given beside an instruction or prompt for all: choose"
    ):
        embed(
            [path], tmp_path / "x.arrow", encoder=encoder, column="text", instruction_column="how", instruction="Find:"
        )


def test_equal_texts_of_a_chunk_are_encoded_once(
    encoder: Encoder, tmp_path: Path, output: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 6, "bytes": 16_000})
    words = ["a sea", "a sea", None, "", "a star " * 300, "a star " * 300, *["a sea"] * 6]
    path = write_parquet(tmp_path / "c.parquet", pa.table({"text": words}))
    report = embed([path], output, encoder=encoder)
    assert encoded == [3, 1]
    assert (report.duplicates, report.truncated, report.empty, report.nulls) == (7, 2, 1, 1)
    found = vectors(output)
    assert (found[1] == found[0]).all()
    assert (found[5] == found[4]).all()
    assert (found[7:] == found[6]).all()
    present = [word for word in words if word is not None]
    assert np.abs(found[[i for i, word in enumerate(words) if word is not None]] - encoder.encode(present)).max() < 1e-6
    assert verify(output).return_code == 0
