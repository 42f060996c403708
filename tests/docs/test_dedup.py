"""The recipes of docs/dedup.md, run one after the other on the articles."""

import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, embed
from tests import ARTICLES, ROOT

RECIPES = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/dedup.md").read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_corpus_is_written_without_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tests/data").mkdir(parents=True)
    shutil.copy(ARTICLES, "tests/data")
    encoder = Encoder.from_pretrained(dtype="float32", device="cpu")
    embed(ARTICLES, "vecs.arrow", encoder=encoder, column="text", keep=["title"])
    variables: dict[str, Any] = {}
    for recipe in RECIPES:
        exec(compile(recipe, "dedup.md", "exec"), variables)

    corpus, keep = pq.read_table(ARTICLES), pq.read_table("groups.parquet")["keep"]
    expected = corpus.filter(keep)
    assert 0 < expected.num_rows < corpus.num_rows
    assert variables["report"].kept == expected.num_rows
    assert pl.read_parquet("deduplicated.parquet").equals(pl.DataFrame(expected))
    assert pl.read_parquet("deduplicated-by-duckdb.parquet").equals(pl.DataFrame(expected))
    least = pl.read_parquet("near.parquet").sort("similarity")["row_a"][0]
    assert corpus["title"][least].as_py() in capfd.readouterr().out  # the pairs
