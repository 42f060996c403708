import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fastvec.cli.entry import main

Run = Callable[..., "Done"]


class Done(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def fastvec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command through its entry point, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTVEC_EMBED_DEVICE", "cpu")

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["fastvec", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main()
        return Done(int(done.value.code or 0), *capsys.readouterr())

    return run
