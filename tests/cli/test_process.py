"""The command as a process: its streams, its terminal, what it imports, how it ends."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ARTICLES
from tests.helpers.outputs import run_job
from tests.helpers.processes import environment

UNWRITTEN = "fastvec: the result cannot be written to stdout"


@pytest.mark.parametrize(
    ("command", "exit_code", "message"),
    [
        ("no-command 2>/dev/full", 2, ""),  # not 120, Python's exit code when a stream cannot be flushed
        ("verify vecs.arrow >/dev/full", 1, f"{UNWRITTEN}: No space left on device\n"),
        ("verify vecs.arrow >/dev/full 2>&1", 1, ""),
        ("inspect vecs.arrow >&-", 0, ""),
    ],
)
def test_a_stream_that_takes_nothing_is_no_traceback(
    tmp_path: Path, command: str, exit_code: int, message: str
) -> None:
    run_job(tmp_path / "vecs.arrow")
    shell = f'exec "{sys.executable}" -m fastvec {command}'
    done = subprocess.run(shell, shell=True, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (exit_code, message)


def test_progress_is_live_on_a_terminal(tiny_llama: Path, tmp_path: Path) -> None:
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "fastvec", "embed", str(ARTICLES), "-o", "vecs.arrow", "--column", "text"]
    with subprocess.Popen(
        [*command, "--model", str(tiny_llama)], cwd=tmp_path, env=environment(), stderr=secondary, stdout=secondary
    ) as process:
        os.close(secondary)
        shown = b""
        while chunk := _read(primary):
            shown += chunk
    os.close(primary)
    assert process.returncode == 0
    assert b"300 of 300 rows" in shown
    assert b"300 rows to vecs.arrow" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux raises EIO on a terminal whose other end is closed
        return b""


def test_the_shell_completes_options() -> None:
    asked = {"_FASTVEC_COMPLETE": "bash_complete", "COMP_WORDS": "fastvec embed --vector-d", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "fastvec"], env=environment() | asked, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["plain,--vector-dtype"]


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'pyarrow', 'numpy'}"
    script = f"import sys, fastvec.cli.entry; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], env=environment(), check=False).returncode == 0


@pytest.mark.parametrize(
    ("end", "exit_code", "printed"),
    [("sys.exit(4)", 4, "result handler\n"), ("raise ValueError", 1, "result handler\nmodules\n")],
)
def test_a_process_ends_after_its_exit_handlers_and_before_its_modules(end: str, exit_code: int, printed: str) -> None:
    script = f"""
import atexit, sys
from fastvec.cli import entry

class Kept:
    def __del__(self):
        print("modules")

kept = Kept()

def main():
    atexit.register(print, "handler")
    print("result", end=" ")
    {end}

entry.main = main
entry.process()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (exit_code, printed)
