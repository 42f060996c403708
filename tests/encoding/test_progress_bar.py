import io
import re
import sys

import pytest

from fastvec import Encoder
from tests.helpers.tiny import SENTENCES


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_counts_the_texts_on_a_terminal_if_asked_for(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    encoder.encode(SENTENCES, batch_tokens=20)
    encoder.encode(SENTENCES, batch_tokens=20, show_progress_bar=False)
    assert terminal.getvalue() == ""
    encoder.encode(SENTENCES, batch_tokens=20, show_progress_bar=True)
    assert "5/5 texts" in re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())  # without colours


def test_a_bar_moves_with_every_batch(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    tokenizer = encoder.tokenizer()
    encoder._encode_rows(["one text"] * 40, 100, tokenizer, seen.append)
    assert seen == [100]
    monkeypatch.setattr(encoder, "batch_tokens", 5 * len(tokenizer(["one text"]).ids))
    encoder._encode_rows(["one text"] * 40, 100, tokenizer, seen.append)
    assert seen[1:] == [100, 105, 110, 115, 120, 125, 130, 135]


def test_without_a_terminal_there_is_no_bar(encoder: Encoder, capfd: pytest.CaptureFixture[str]) -> None:
    encoder.encode(SENTENCES, show_progress_bar=True)
    assert capfd.readouterr() == ("", "")
