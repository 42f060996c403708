"""Texts that are too long for a sequence: truncated, averaged over passages, or a row for each passage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, convert, embed, merge
from fastvec.embedding.estimate import estimate
from fastvec.embedding.options import EmbedOptions
from fastvec.embedding.plan import plan_embed
from fastvec.errors import RefusedError, UsageError
from fastvec.output.arrow_file import write
from fastvec.output.inspect import inspect
from fastvec.output.reader import read_output as opened
from fastvec.output.verify import verify
from tests import ARTICLES
from tests.helpers.corpora import texts, write_parquet
from tests.helpers.kills import Killed, kill_after
from tests.helpers.outputs import read_output

ROWS = pq.read_table(ARTICLES, columns=["title", "text"]).slice(0, 12)
SHORT = ["a sea", None, "", "rain " * 400, "a sea"]


@pytest.fixture(scope="module")
def encoder(tiny_llama: Path) -> Encoder:
    """An encoder that is full after 48 tokens."""
    return Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu", max_length=48)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    titles = [*ROWS["title"].to_pylist(), *(f"short {n}" for n in range(len(SHORT)))]
    return write_parquet(
        tmp_path / "corpus.parquet", pa.table({"title": titles, "text": [*ROWS["text"].to_pylist(), *SHORT]})
    )


def test_the_mean_is_weighted_by_tokens_and_short_texts_are_as_they_were(
    encoder: Encoder, corpus: Path, tmp_path: Path
) -> None:
    mean, passages, cut = (tmp_path / name for name in ("mean.arrow", "passages.arrow", "cut.arrow"))
    report = embed(corpus, mean, encoder=encoder, column="text", long="mean", overlap=4)
    embed(corpus, passages, encoder=encoder, column="text", long="chunks", overlap=4)
    embed(corpus, cut, encoder=encoder, column="text")
    assert (report.rows, report.truncated, report.nulls) == (17, 0, 1)
    assert verify(mean).return_code == 0
    found = read_output(mean)["embedding"].to_pylist()
    rows, parts = read_output(passages), pq.read_table(corpus)["text"].to_pylist()
    tokenizer = encoder.tokenizer()
    for row, text in enumerate(parts):
        own = rows.filter(pa.compute.equal(rows["row"], row))
        if text is None:
            assert found[row] is None
            continue
        spans = list(zip(own["char_start"].to_pylist(), own["char_end"].to_pylist(), strict=True))
        tokenized = tokenizer([text[begin:end] for begin, end in spans])
        weights = np.diff(tokenized.spans)[:, 0]
        expected = np.average(np.array(own["embedding"].to_pylist()), axis=0, weights=weights)
        assert np.abs(found[row] - expected / np.linalg.norm(expected)).max() < 1e-5
    whole = read_output(cut)["embedding"].to_pylist()
    assert (
        np.abs(np.array([found[12], found[14], found[16]]) - np.array([whole[12], whole[14], whole[16]])).max() < 1e-6
    )
    assert np.abs(np.array(found[0]) - np.array(whole[0])).max() > 1e-3


def test_a_row_for_each_passage_has_the_vector_of_its_text(encoder: Encoder, corpus: Path, output: Path) -> None:
    report = embed(corpus, output, encoder=encoder, column="text", keep=["title"], long="chunks", chunk_text=True)
    table = read_output(output)
    assert table.column_names == ["title", "row", "chunk", "char_start", "char_end", "chunk_text", "embedding"]
    assert (report.rows, report.input_rows, report.truncated, report.nulls) == (table.num_rows, 17, 0, 1)
    source = pq.read_table(corpus).to_pylist()
    pieces = []
    for passage in table.to_pylist():
        row = source[passage["row"]]
        assert passage["title"] == row["title"]
        if row["text"] is None:
            assert (passage["chunk"], passage["char_start"], passage["embedding"]) == (0, None, None)
            assert passage["chunk_text"] is None
        else:
            assert passage["chunk_text"] == row["text"][passage["char_start"] : passage["char_end"]]
            pieces.append((row["text"][passage["char_start"] : passage["char_end"]], passage["embedding"]))
    vectors = encoder.encode([text for text, _ in pieces])
    assert np.abs(vectors - np.array([vector for _, vector in pieces])).max() < 1e-6
    last = dict(zip(table["row"].to_pylist(), table["chunk"].to_pylist(), strict=True))
    assert sorted(last) == list(range(17))
    assert sum(last.values()) + 17 == table.num_rows
    assert verify(output).return_code == 0
    assert f"{table.num_rows:,} passages of 17 rows, 1 of them without a vector" in str(inspect(output))
    assert inspect(output).kept == {"title": "string"}
    assert str(report).startswith(f"{table.num_rows:,} passages of 17 rows to ")
    with pytest.raises(RefusedError, match="chunk_text was true, now null"):
        embed(corpus, output, encoder=encoder, column="text", keep=["title"], long="chunks")


@pytest.mark.parametrize("chunk_tokens", [8, 16])
def test_passages_are_as_long_as_asked_for(encoder: Encoder, corpus: Path, output: Path, chunk_tokens: int) -> None:
    embed(corpus, output, encoder=encoder, column="text", long="chunks", chunk_tokens=chunk_tokens, limit=3)
    source, table = pq.read_table(corpus)["text"].to_pylist(), read_output(output).to_pylist()
    pieces = [source[passage["row"]][passage["char_start"] : passage["char_end"]] for passage in table]
    tokenizer = encoder.tokenizer()
    lengths = np.diff(tokenizer(pieces).spans)[:, 0]
    assert lengths.max() <= chunk_tokens
    assert np.median(lengths) > chunk_tokens // 2 - 2


@pytest.mark.parametrize("long", ["mean", "chunks"])
def test_a_killed_run_ends_with_the_same_bytes(
    encoder: Encoder, corpus: Path, tmp_path: Path, long: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 4, "bytes": 1 << 20, "row_bytes": 100})
    whole, broken = tmp_path / "whole.arrow", tmp_path / "broken.arrow"
    options: dict[str, Any] = {"encoder": encoder, "column": "text", "long": long, "overlap": 3}
    embed(corpus, whole, **options)
    for _ in range(2):
        with pytest.raises(Killed):
            embed(corpus, broken, **options, progress=kill_after(1))
    embed(corpus, broken, **options)
    assert broken.read_bytes() == whole.read_bytes()


def test_bad_rows_and_errors_are_those_of_the_inputs(encoder: Encoder, tmp_path: Path, output: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join([json.dumps({"text": "rain " * 200}), "broken", json.dumps({"text": "x"})]))
    report = embed(path, output, encoder=encoder, long="chunks")
    assert (report.errors, report.input_rows, report.nulls) == (1, 3, 0)
    error = json.loads((tmp_path / "vecs.errors.jsonl").read_text())
    assert error == {"row": 1, "file": str(path), "line": 2, "code": "malformed_row"}
    assert verify(output).return_code == 0


def test_hashes_are_of_passages_and_are_reused(encoder: Encoder, corpus: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old.arrow", tmp_path / "new.arrow"
    before = embed(corpus, old, encoder=encoder, column="text", long="chunks", hash=True, limit=6)
    after = embed(corpus, new, encoder=encoder, column="text", long="chunks", reuse=old)
    assert after.reused >= before.rows
    with pytest.raises(RefusedError, match=r'passages was \["chunks", 0, null, false\], now null'):
        embed(corpus, tmp_path / "x.arrow", encoder=encoder, column="text", reuse=old)
    mean = tmp_path / "mean.arrow"
    embed(corpus, mean, encoder=encoder, column="text", long="mean", hash=True)
    again = embed(corpus, tmp_path / "again.arrow", encoder=encoder, column="text", long="mean", reuse=mean)
    assert (again.reused, again.tokens) == (16, 0)
    assert read_output(tmp_path / "again.arrow")["embedding"].equals(read_output(mean)["embedding"])


def test_passages_are_converted_and_merged(encoder: Encoder, corpus: Path, tmp_path: Path) -> None:
    one, two, both, parquet = (tmp_path / name for name in ("one.arrow", "two.arrow", "both.arrow", "both.parquet"))
    embed(corpus, one, encoder=encoder, column="text", long="chunks", limit=3)
    embed(corpus, two, encoder=encoder, column="text", long="chunks", limit=2)
    merge([one, two], both)
    convert(both, parquet)
    assert verify(both).return_code == verify(parquet).return_code == 0
    rows = read_output(both)["row"].to_pylist()
    assert sorted(set(rows)) == [0, 1, 2, 3, 4]
    assert pq.read_table(parquet).equals(read_output(both))


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (lambda numbers, rows: numbers[::-1], "order"),
        (lambda numbers, rows: [0] * len(numbers), "order"),
    ],
)
def test_passages_out_of_order_are_found(
    encoder: Encoder, corpus: Path, output: Path, change: Callable[[Any, Any], Any], failed: str
) -> None:
    embed(corpus, output, encoder=encoder, column="text", long="chunks", limit=3)
    before = opened(output)
    batch = pa.Table.from_batches(before.stored_batches()).combine_chunks().to_batches()[0]
    numbers = pa.array(change(batch["chunk"].to_pylist(), batch["row"].to_pylist()), pa.int32())
    changed = batch.set_column(batch.schema.get_field_index("chunk"), before.schema.field("chunk"), numbers)
    damaged = output.with_name("damaged.arrow")
    with damaged.open("wb+") as file:
        write(
            damaged,
            file.fileno(),
            before.schema,
            [changed.replace_schema_metadata(before.schema.metadata)],
            before.counts,
        )
    assert [check.name for check in verify(damaged).checks if not check.passed] == [failed]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long": "split"}, "long 'split' is not known: choose truncate, mean, chunks"),
        ({"overlap": 3}, "--overlap needs passages: choose --long mean or chunks"),
        ({"long": "mean", "chunk_tokens": 9}, "--chunk-tokens needs --long chunks"),
        ({"long": "chunks", "column": ["title", "text"]}, "--long chunks makes a row of each passage of one text"),
        ({"long": "chunks", "chunk_tokens": 99}, "passages of 99 tokens do not fit: a sequence has room for 1 to 47"),
        ({"long": "mean", "overlap": 30}, "an overlap of 30 tokens does not fit passages of 47: choose 0 to 20"),
        ({"late": True, "long": "chunks"}, "--late needs --long chunks and --chunk-tokens"),
        ({"late": True, "chunk_tokens": 9, "long": "chunks", "hash": True}, "--late cannot be combined with --hash"),
        ({"chunk_text": True}, "--chunk-text needs --long chunks"),
        ({"vector_column": "chunk"}, "vector column 'chunk' is the name of another output column"),
    ],
)
def test_options_that_contradict_each_other(
    encoder: Encoder, corpus: Path, output: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        embed(corpus, output, encoder=encoder, **{"column": "text", **options})
    assert not output.exists()


def test_kept_columns_that_would_be_repeated_too_often_are_refused(
    encoder: Encoder, tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastvec.embedding.passages.MOST_KEPT_BYTES", 10_000)
    path = write_parquet(tmp_path / "long.parquet", texts(["short", "rain " * 1000]))
    with pytest.raises(UsageError, match=r"row 1: its kept columns of 5,000 bytes would be repeated for each of"):
        embed(path, output, encoder=encoder, keep=["text"], long="chunks")


def test_passages_have_the_instruction_of_their_row(encoder: Encoder, tmp_path: Path, output: Path) -> None:
    rows: dict[str, list[Any]] = {
        "text": ["rain " * 100, "snow " * 100, "wind"],
        "how": ["Find:", None, "x" * 999],
    }
    path = write_parquet(tmp_path / "c.parquet", pa.table(rows))
    report = embed(path, output, encoder=encoder, column="text", instruction_column="how", long="chunks")
    assert (report.errors, report.truncated) == (1, 0)
    passages = [passage for passage in read_output(output).to_pylist() if passage["row"] < 2]
    for passage in passages:
        text = rows["text"][passage["row"]][passage["char_start"] : passage["char_end"]]
        expected = encoder.encode([text], instruction=rows["how"][passage["row"]])[0]
        assert np.abs(np.array(passage["embedding"]) - expected).max() < 1e-6
    assert len(passages) > 4


@pytest.mark.parametrize("batch_tokens", [None, 60])
def test_late_passages_are_parts_of_the_vector_of_their_context(
    tiny_llama: Path, tmp_path: Path, batch_tokens: int | None
) -> None:
    """Their mean, weighted by tokens, is the vector of the whole; that of passages encoded alone is not."""
    encoder = Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu", max_length=512, normalize=False)
    tokenizer = encoder.tokenizer()
    # without white space, which between passages belongs to none
    words = ["_".join(text.split())[:300] for text in ROWS["text"].to_pylist()]
    path = write_parquet(tmp_path / "c.parquet", texts([*words]))
    late, alone = tmp_path / "late.arrow", tmp_path / "alone.arrow"
    options: dict[str, Any] = {"encoder": encoder, "long": "chunks", "chunk_tokens": 24}
    embed(path, late, **options, late=True, batch_tokens=batch_tokens)
    embed(path, alone, **options)
    assert verify(late).return_code == 0
    places = ["row", "chunk", "char_start", "char_end"]
    found, others = read_output(late), read_output(alone)
    assert found.select(places).equals(others.select(places))
    for row, text in enumerate(words):
        own = found.filter(pa.compute.equal(found["row"], row))
        spans = np.stack([own["char_start"].to_numpy(), own["char_end"].to_numpy()], axis=1)
        assert len(spans) > 2
        weights = np.diff(tokenizer.with_passages([text], [spans]).spans)[:, 0]
        assert weights.sum() == np.diff(tokenizer([text]).spans)
        parts = np.average(np.array(own["embedding"].to_pylist()), axis=0, weights=weights)
        assert np.abs(parts - encoder.encode([text])[0]).max() < 1e-5
    difference = np.array(found["embedding"].to_pylist()) - np.array(others["embedding"].to_pylist())
    assert np.abs(difference).max(axis=1).min() > 1e-3


def test_a_killed_late_run_ends_with_the_same_bytes_and_bad_rows_are_reported(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 2, "bytes": 1 << 20})
    path, whole, broken = (tmp_path / name for name in ("c.jsonl", "whole.arrow", "broken.arrow"))
    lines = [json.dumps({"text": text}) for text in [*ROWS["text"].to_pylist()[:5], None, ""]]
    path.write_text("\n".join([*lines, "broken"]))
    options: dict[str, Any] = {"encoder": encoder, "long": "chunks", "chunk_tokens": 12, "overlap": 2, "late": True}
    report = embed(path, whole, **options)
    assert (report.errors, report.nulls, report.empty, report.input_rows, report.truncated) == (1, 1, 1, 8, 0)
    with pytest.raises(Killed):
        embed(path, broken, **options, progress=kill_after(1))
    embed(path, broken, **options)
    assert broken.read_bytes() == whole.read_bytes()
    last = Encoder.from_pretrained(
        encoder.settings.checkpoint.name, dtype="float32", device="cpu", max_length=48, pooling="last"
    )
    with pytest.raises(UsageError, match="--late needs mean pooling, and this model has last: leave it out"):
        embed(path, tmp_path / "x.arrow", **{**options, "encoder": last})


@pytest.mark.parametrize("model", ["bundled", "tiny"])
def test_late_texts_without_tokens_have_vectors_and_are_estimated(
    encoder: Encoder, tmp_path: Path, output: Path, model: str
) -> None:
    encoder = Encoder.from_pretrained(None, device="cpu") if model == "bundled" else encoder
    path = write_parquet(tmp_path / "c.parquet", texts(["", " ", "rain " * 100, "", None]))
    options: dict[str, Any] = {"long": "chunks", "chunk_tokens": 16, "late": True}
    report = embed(path, output, encoder=encoder, **options)
    assert (report.empty, report.nulls, report.errors) == (3, 1, 0)
    assert verify(output).return_code == 0
    plan = plan_embed(path, tmp_path / "x.arrow", settings=encoder.settings, options=EmbedOptions(**options))
    found = estimate(plan, encoder)
    assert (found.rows, found.sampled_rows) == (5, 5)
    assert found.output_bytes > plan.output_bytes


def test_many_texts_are_averaged_in_their_order(encoder: Encoder, tmp_path: Path, output: Path) -> None:
    """Short and long ones in turn."""
    words = [f"{n} rain " * (1 + 37 * (n % 3)) for n in range(20)]
    embed(write_parquet(tmp_path / "c.parquet", texts([*words])), output, encoder=encoder, long="mean")
    for word, vector in zip(words, read_output(output)["embedding"].to_pylist(), strict=True):
        alone = tmp_path / "alone.arrow"
        embed(texts([word]), alone, encoder=encoder, long="mean", overwrite=True)
        assert np.abs(np.array(vector) - np.array(read_output(alone)["embedding"][0].as_py())).max() < 1e-6
