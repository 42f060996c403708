"""A run over a corpus that grew copies the vectors of the texts that an earlier output has."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastvec import Encoder, convert, embed, merge
from fastvec.errors import FastvecError, OutputError, RefusedError
from fastvec.output.verify import verify
from fastvec.settings import EncoderSettings
from tests.helpers.corpora import texts, write_parquet
from tests.helpers.kills import Killed, kill_after
from tests.helpers.outputs import read_output

OLD = ["a sea", None, "a star", "", "a sea", "rain"]
NEW = ["snow", "a star", "a sea", None, "wind", "", "snow", "rain"]


@pytest.fixture
def corpora(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write_parquet(tmp_path / "old.parquet", texts([*OLD])),
        write_parquet(tmp_path / "new.parquet", texts([*NEW])),
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_known_texts_keep_their_bytes_and_others_are_embedded(
    encoder: Encoder,
    corpora: tuple[Path, Path],
    tmp_path: Path,
    encoded: list[int],
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new, whole = (tmp_path / name for name in ("old.arrow", "new.arrow", "whole.arrow"))
    embed(corpora[0], old, encoder=encoder, vector_dtype=dtype, hash=True)
    embed(corpora[1], whole, encoder=encoder, vector_dtype=dtype)
    encoded.clear()
    report = embed(corpora[1], new, encoder=encoder, vector_dtype=dtype, reuse=old)
    assert encoded == [2]
    assert (report.reused, report.duplicates, report.nulls, report.empty) == (4, 1, 1, 1)
    assert verify(new).return_code == 0
    before, after, again = (read_output(path)["embedding"].to_pylist() for path in (old, new, whole))
    for row, text in enumerate(NEW):
        if text in OLD:
            assert after[row] == before[OLD.index(text)]
        elif dtype == "float32":
            assert np.abs(np.array(after[row]) - np.array(again[row])).max() < 1e-6
    if dtype == "int8":  # values of both files are comparable
        assert (
            read_output(new).schema.metadata[b"fastvec.ranges"] == read_output(old).schema.metadata[b"fastvec.ranges"]
        )
    hashes = read_output(new)["hash"].to_pylist()
    assert [value is None for value in hashes] == [text is None for text in NEW]
    assert len(set(hashes)) == len(set(NEW))
    encoded.clear()
    with monkeypatch.context() as unread:  # a finished job is left alone without reading the vectors again
        unread.setattr("fastvec.output.earlier.open_intact", None)
        assert embed(corpora[1], new, encoder=encoder, vector_dtype=dtype, reuse=old).already_finished
    third = embed(corpora[1], tmp_path / "third.arrow", encoder=encoder, vector_dtype=dtype, reuse=new)
    assert (encoded, third.reused) == ([0], 7)
    assert read_output(tmp_path / "third.arrow")["embedding"].equals(read_output(new)["embedding"])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_killed_run_that_reuses_ends_with_the_same_bytes(
    encoder: Encoder, corpora: tuple[Path, Path], tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 3, "bytes": 1000})
    old, whole, broken = (tmp_path / name for name in ("old.arrow", "whole.arrow", "broken.arrow"))
    embed(corpora[0], old, encoder=encoder, vector_dtype=dtype, hash=True)
    options: dict[str, Any] = {"encoder": encoder, "vector_dtype": dtype, "reuse": old}
    embed(corpora[1], whole, **options)

    with pytest.raises(Killed):
        embed(corpora[1], broken, **options, progress=kill_after(1))
    assert embed(corpora[1], broken, **options).resumed_rows == 3
    assert broken.read_bytes() == whole.read_bytes()


def test_an_output_may_be_replaced_by_one_that_reuses_it(
    encoder: Encoder, corpora: tuple[Path, Path], output: Path, encoded: list[int]
) -> None:
    embed(corpora[0], output, encoder=encoder, hash=True)
    with pytest.raises(RefusedError, match="belongs to another job: "):
        embed(list(corpora), output, encoder=encoder, reuse=output)
    encoded.clear()
    report = embed(list(corpora), output, encoder=encoder, reuse=output, overwrite=True)
    assert (encoded, report.rows) == ([2], 14)
    assert verify(output).return_code == 0


def test_the_column_and_an_instruction_of_a_row_count(encoder: Encoder, tmp_path: Path, encoded: list[int]) -> None:
    """A text is known whatever column it was in; with another instruction of its row it is another text."""
    rows = {"title": ["a sea", "a star"], "text": ["rain", None], "how": ["Find:", None]}
    path = write_parquet(tmp_path / "c.parquet", pa.table(rows))
    old, new, instructed = (tmp_path / f"{name}.arrow" for name in ("old", "new", "instructed"))
    embed(path, old, encoder=encoder, column=["title", "text"], hash=True)
    assert read_output(old).column_names == ["row", "embedding_title", "embedding_text", "hash_title", "hash_text"]
    encoded.clear()
    other = write_parquet(tmp_path / "other.parquet", texts(["rain", "a star", "snow"]))
    assert embed(other, new, encoder=encoder, reuse=old).reused == 2
    assert encoded == [1]
    report = embed(path, instructed, encoder=encoder, column="title", instruction_column="how", reuse=old)
    assert report.reused == 1  # the row without an instruction
    found = np.array(read_output(instructed)["embedding"].to_pylist())
    assert np.abs(found[0] - encoder.encode(["a sea"], instruction="Find:")[0]).max() < 1e-6


def test_what_cannot_be_reused_is_refused_in_one_line(
    encoder: Encoder, corpora: tuple[Path, Path], tmp_path: Path
) -> None:
    plain, hashed, output = (tmp_path / name for name in ("plain.arrow", "hashed.arrow", "x.arrow"))
    embed(corpora[0], plain, encoder=encoder)
    embed(corpora[0], hashed, encoder=encoder, hash=True)
    convert(hashed, tmp_path / "hashed.parquet")
    merge([hashed, plain_copy(hashed)], tmp_path / "merged.arrow")
    cases: list[tuple[Any, type[FastvecError], str]] = [
        (plain, OutputError, "plain.arrow cannot be reused: it has no hashes of its texts, which --hash writes"),
        (tmp_path / "hashed.parquet", OutputError, "it is a Parquet file, and only Arrow files can; keep both"),
        (tmp_path / "absent.arrow", OutputError, "absent.arrow cannot be read: No such file or directory"),
        (corpora[0], OutputError, "old.parquet is"),
    ]
    for reuse, error, message in cases:
        with pytest.raises(error) as refused:
            embed(corpora[1], output, encoder=encoder, reuse=reuse)
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(
        RefusedError, match=r'its vectors are others: vector_dtype was "float32", now "int8"; leave --reuse out$'
    ):
        embed(corpora[1], output, encoder=encoder, reuse=hashed, vector_dtype="int8")
    with pytest.raises(
        RefusedError, match=r'its vectors are others: instruction was "", now "Find: "; leave --reuse out$'
    ):
        embed(corpora[1], output, encoder=encoder, reuse=hashed, instruction="Find:")
    settings = EncoderSettings(**{**fields(encoder.settings), "pooling": "last"})
    with pytest.raises(RefusedError, match=r'its vectors are others: pooling was "mean", now "last"'):
        embed(corpora[1], output, encoder=settings, reuse=hashed)
    damaged = plain_copy(hashed)
    content = bytearray(hashed.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(OutputError, match=r"copy.arrow is damaged: batches: batch 0 \(rows 0 to "):
        embed(corpora[1], output, encoder=encoder, reuse=damaged)
    assert embed(corpora[1], output, encoder=encoder, reuse=tmp_path / "merged.arrow").reused == 4
    merge([hashed, output], tmp_path / "all.arrow")  # one that reuses another and that one
    assert verify(tmp_path / "all.arrow").return_code == 0
    assert json.loads(read_output(output).schema.metadata[b"fastvec.fingerprint"])["reuse"][0].endswith("merged.arrow")


def plain_copy(path: Path) -> Path:
    copy = path.with_name("copy.arrow")
    copy.write_bytes(path.read_bytes())
    return copy


def fields(settings: EncoderSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}
