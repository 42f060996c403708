import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fastvec
from tests.tiny import SENTENCES


def test_what_is_hardly_meant_is_told(tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, texts = tmp_path / "data.parquet", SENTENCES * 20
    pq.write_table(pa.table({"text": texts, "answer": texts[::-1]}), data)
    small = {"steps": 1, "batch_size": 2, "max_length": 16, "dtype": "float32", "device": "cpu", "overwrite": True}

    def warnings(**options: Any) -> list[str]:
        caplog.clear()
        given = {"objective": "mntp", "column": "text", **small, **options}
        with caplog.at_level(logging.WARNING, "fastvec"):
            fastvec.adapt(model=tiny_llama, data=[data], output=tmp_path / "out", **given)
        return caplog.messages

    assert warnings() == []
    assert warnings(lr=0) == ["--lr 0 trains nothing: the weights stay as they are"]
    pairs = {"objective": "contrastive", "column": None}
    assert warnings(**pairs, query="text", positive="text") == [
        "--query and --positive are both 'text': pairs of a text with itself teach nothing"
    ]
