"""Rows without a finite vector: they become reported nulls, or the run stops there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from fastvec import Encoder, embed
from fastvec.errors import RowErrorsError
from fastvec.forward import Forward
from fastvec.output.verify import verify
from fastvec.settings import EncoderSettings, resolve_settings
from tests.helpers.corpora import texts, write_parquet
from tests.helpers.outputs import read_output
from tests.helpers.tiny import save_decoder


@pytest.fixture(scope="module")
def broken_model(tmp_path_factory: pytest.TempPathFactory) -> EncoderSettings:
    """A decoder whose embedding of the digit 5 is NaN."""
    folder = save_decoder(tmp_path_factory.mktemp("broken"), "llama")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.embed_tokens.weight[tokenizer("5")["input_ids"][-1]] = torch.nan
    model.save_pretrained(folder)
    return resolve_settings(folder, dtype="float32", device="cpu")


def test_a_row_without_a_vector_is_a_null_and_an_error_line(
    broken_model: EncoderSettings, tmp_path: Path, output: Path
) -> None:
    corpus = write_parquet(tmp_path / "corpus.parquet", texts(["one:1", None, "one:5", "one:2"]))
    report = embed([corpus], output, encoder=broken_model)

    assert (report.errors, report.nulls, report.return_code) == (1, 1, 3)
    assert read_output(output)["embedding"].is_valid().to_pylist() == [True, False, False, True]
    lines = [json.loads(line) for line in (tmp_path / "vecs.errors.jsonl").read_text().splitlines()]
    assert lines == [{"row": 2, "file": str(corpus), "row_group": 0, "code": "non_finite_vector"}]
    assert verify(output).return_code == 0
    again = embed([corpus], output, encoder=broken_model)
    assert (again.already_finished, again.errors, again.nulls, again.return_code) == (True, 1, 1, 3)


def test_on_error_fail_stops_before_anything_of_that_chunk_is_kept(
    broken_model: EncoderSettings, tmp_path: Path, output: Path
) -> None:
    corpus = write_parquet(tmp_path / "corpus.parquet", texts(["one:1", "one:5"]))
    with pytest.raises(RowErrorsError, match=r"row 1 \(.*\) has no vector \(non_finite_vector\) and --on-error fail"):
        embed([corpus], output, encoder=broken_model, on_error="fail")
    assert not output.exists()


def test_a_run_that_an_error_stopped_goes_on_with_nulls_allowed(
    broken_model: EncoderSettings, tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 1, "bytes": 1 << 20})
    corpus = write_parquet(tmp_path / "corpus.parquet", texts(["one:1", "one:2", "one:5", "one:3"]))
    with pytest.raises(RowErrorsError, match="2 rows are safe; run the same command with --on-error null to resume"):
        embed([corpus], output, encoder=broken_model, on_error="fail")
    report = embed([corpus], output, encoder=broken_model)
    assert (report.resumed_rows, report.rows, report.errors) == (2, 4, 1)


def test_more_errors_than_allowed_stop_and_a_higher_limit_goes_on(
    broken_model: EncoderSettings, tmp_path: Path, output: Path
) -> None:
    corpus = write_parquet(tmp_path / "corpus.parquet", texts(["one:5", "one:1", "two:5"]))
    with pytest.raises(RowErrorsError, match=r"row 2 .* --max-errors 1 stops there.* with a larger --max-errors"):
        embed([corpus], output, encoder=broken_model, max_errors=1)
    assert embed([corpus], output, encoder=broken_model, max_errors=2).errors == 2


@pytest.mark.parametrize("name", ["vecs.arrow", "vecs/"])
def test_int8_ranges_are_not_those_of_the_texts_before_an_error(
    encoder: Encoder, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that fails once must not leave ranges of fewer texts, which a resumed run would keep."""
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 2, "bytes": 1 << 20})
    corpus = write_parquet(tmp_path / "corpus.parquet", texts([f"text {number}" for number in range(8)]))
    options: dict[str, Any] = {"encoder": encoder, "vector_dtype": "int8", "max_errors": 0}
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    embed([corpus], f"{tmp_path}/whole/{name}", **options)
    forward, calls = Forward.__call__, list[int]()

    def failing(self: Forward, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        return forward(self, *arguments) * (1 if len(calls) == 1 else torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(Forward, "__call__", failing)
        with pytest.raises(RowErrorsError, match=r"row 2 .* has no vector"):
            embed([corpus], f"{tmp_path}/broken/{name}", **options)
    embed([corpus], f"{tmp_path}/broken/{name}", **options)
    path = "vecs/part-00000.arrow" if name == "vecs/" else name
    assert (tmp_path / "broken" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
