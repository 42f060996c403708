"""Signals that stop a job, a terminal that is closed, and memory that runs out."""

import errno
import io
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from fastvec.cli.progress import progress_display
from fastvec.cli.signals import interrupted_by_signal, stop_on_signal
from fastvec.errors import InterruptedRunError
from fastvec.report import Progress
from fastvec.system.stop_signals import STOP_SIGNALS
from tests.cli.conftest import Run
from tests.helpers.outputs import run_job
from tests.helpers.processes import environment

OUT_OF_MEMORY = "fastvec: out of memory: free some, or allow more, and run the same command again\n"


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_told_and_the_handlers_are_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signal() as stopped:
        assert stopped() is None
        signal.raise_signal(number)
        assert stopped() == number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_job_that_cannot_be_resumed_is_interrupted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match="stopped") as raised, interrupted_by_signal():
        signal.raise_signal(number)
    assert raised.value.exit_code == 128 + number
    assert signal.getsignal(number) == before


def test_a_closed_terminal_stops_once_however_many_send_sighup() -> None:
    with stop_on_signal() as stopped:
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
        assert stopped() == signal.SIGHUP


def test_ctrl_c_before_the_command_has_begun_is_one_line(fastvec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastvec.cli.entry.open_closed_streams", interrupted)
    assert fastvec("--help") == (130, "", "fastvec: stopped\n")


def test_an_ignored_sighup_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signal() as stopped:
        signal.raise_signal(signal.SIGHUP)
        assert stopped() is None


class ClosedTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_progress_on_a_terminal_that_was_closed_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", ClosedTerminal())
    with progress_display(quiet=False) as show:
        show(Progress(rows=1, total_rows=2, new_rows=1, tokens=5, seconds=1, waits={}))
    assert not isinstance(sys.stderr, ClosedTerminal)
    sys.stderr.close()  # the stream that replaced it


@pytest.mark.slow
@pytest.mark.parametrize(("ignored", "exit_code"), [(False, 129), (True, 0)])
def test_a_job_whose_terminal_is_closed(tiny_llama: Path, tmp_path: Path, ignored: bool, exit_code: int) -> None:
    """It stops so that it can be resumed; after `nohup` it continues."""
    texts = "".join(f"a sea {row}\n" for row in range(9_000))
    (tmp_path / "seas.txt").write_text(texts)
    primary, secondary = pty.openpty()
    own = f"import os, signal; os.login_tty({secondary}); "
    own += "signal.signal(signal.SIGHUP, signal.SIG_IGN); " * ignored
    arguments = ["embed", "seas.txt", "-o", "vecs.arrow", "--model", str(tiny_llama), "--batch-tokens", "32"]
    script = own + f"os.execv({sys.executable!r}, [{sys.executable!r}, '-m', 'fastvec', *{arguments!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), pass_fds=[secondary]
    ) as process:
        os.close(secondary)
        shown = b""
        while b" of 9,000 rows" not in shown:
            shown += os.read(primary, 4096)
        os.close(primary)
    assert process.returncode == exit_code
    assert (tmp_path / "vecs.arrow.journal").exists() == (not ignored)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 128 failed"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("could not create a primitive"),
        RuntimeError("unable to mmap 38184 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        RuntimeError("can't start new thread"),
        pa.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)
def test_too_little_memory_is_one_line(
    fastvec: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(path: Path) -> None:
        raise error

    run_job(tmp_path / "vecs.arrow")
    monkeypatch.setattr("fastvec.output.verify.verify", fail)
    assert fastvec("verify", "vecs.arrow") == (1, "", OUT_OF_MEMORY)


def test_another_error_is_not_taken_for_too_little_memory(
    fastvec: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError("a bug")

    run_job(tmp_path / "vecs.arrow")
    monkeypatch.setattr("fastvec.output.verify.verify", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        fastvec("verify", "vecs.arrow")
