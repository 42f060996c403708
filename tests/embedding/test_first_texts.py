"""What the first texts of a run decide, and that enough of them are collected however small the first chunk is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, embed
from fastvec.decoders.quantized import int8_bits
from fastvec.embedding.encoded_chunks import FIRST_TEXTS
from fastvec.errors import InterruptedRunError, ModelError
from fastvec.output.verify import verify
from fastvec.report import Progress
from tests import ARTICLES


@pytest.fixture(autouse=True)
def chunks_of_seven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 7, "bytes": 1 << 20})


def ranges_in(output: Path) -> Any:
    with pa.memory_map(str(output)) as source:
        return np.array(json.loads(pa.ipc.open_file(source).schema.metadata[b"fastvec.ranges"]), dtype=np.float32)


def test_int8_has_the_ranges_of_256_texts_though_nulls_stand_between(encoder: Encoder, tmp_path: Path) -> None:
    texts = pq.read_table(ARTICLES)["text"].to_pylist()
    pq.write_table(pa.table({"text": [None, *texts[:100], None, *texts[100:]]}), tmp_path / "corpus.parquet")
    output = tmp_path / "vecs.arrow"
    written: list[int] = []

    embed(
        [tmp_path / "corpus.parquet"],
        output,
        encoder=encoder,
        vector_dtype="int8",
        progress=lambda state: written.append(state.rows),
    )

    assert written[35:38] == [0, 259, 266]  # 37 chunks of 7 rows have 257 texts and two nulls
    expected = np.abs(encoder.encode(texts[:257])).max(axis=0)
    np.testing.assert_allclose(ranges_in(output), expected, rtol=1e-5)
    assert verify(output).return_code == 0


def test_fewer_texts_than_that_are_written_at_the_end(encoder: Encoder, tmp_path: Path) -> None:
    output = tmp_path / "vecs.arrow"
    assert embed([ARTICLES], output, encoder=encoder, column="text", limit=20, vector_dtype="int8").rows == 20
    expected = np.abs(encoder.encode(pq.read_table(ARTICLES)["text"].to_pylist()[:20])).max(axis=0)
    np.testing.assert_allclose(ranges_in(output), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [1, 38])
def test_a_run_that_was_stopped_makes_the_same_file(encoder: Encoder, tmp_path: Path, stopped_at: int) -> None:
    whole, resumed, chunks = tmp_path / "whole.arrow", tmp_path / "resumed.arrow", 0

    def count(_: Progress) -> None:
        nonlocal chunks
        chunks += 1

    options: dict[str, Any] = {"encoder": encoder, "column": "text", "vector_dtype": "int8"}
    embed([ARTICLES], whole, **options)
    with pytest.raises(InterruptedRunError, match="at row 0 of" if stopped_at == 1 else "at row 2"):
        embed([ARTICLES], resumed, **options, progress=count, stop_signal=lambda: 2 if chunks >= stopped_at else None)
    embed([ARTICLES], resumed, **options)
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.skipif(int8_bits() is None, reason="needs an x86-64 CPU with AVX2 or VNNI")
def test_nothing_is_written_before_a_quantised_forward_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under 100 texts only the cosine is compared, which passes here; from 100 texts on, neighbours are too."""
    monkeypatch.setattr("fastvec.decoders.agreement.LEAST_OVERLAP", 1.1)
    encoder = Encoder.from_pretrained(dtype="float32", device="cpu", quantize="int8")
    with pytest.raises(ModelError, match="int8 changes this model's vectors too much"):
        embed([ARTICLES], tmp_path / "vecs.arrow", encoder=encoder, column="text")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_floats_are_written_chunk_by_chunk(encoder: Encoder, tmp_path: Path) -> None:
    written: list[int] = []
    embed(
        [ARTICLES],
        tmp_path / "vecs.arrow",
        encoder=encoder,
        column="text",
        progress=lambda state: written.append(state.rows),
    )
    assert written[0] == 7
    assert FIRST_TEXTS > 7
