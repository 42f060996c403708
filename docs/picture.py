"""Write docs/run.svg: a terminal that embeds a corpus, is interrupted, resumes, and verifies the output.

    python docs/picture.py

The commands really run, in a temporary folder, on the test corpus repeated 20 times.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
REPEATS = 20
INTERRUPT_AFTER = 10.0  # seconds: starting takes some of them
WIDTH = 116
EMBED = "fastvec embed corpus.parquet -o vecs.arrow --keep title"
VERIFY = "fastvec verify vecs.arrow"


def main() -> None:
    console = Console(record=True, width=WIDTH, force_terminal=True, file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        articles = pq.read_table(ROOT / "tests/data/articles.parquet")
        pq.write_table(pa.concat_tables([articles] * REPEATS), folder / "corpus.parquet", row_group_size=1000)
        interrupted = run(EMBED, folder, interrupt_after=INTERRUPT_AFTER)
        show(console, EMBED, interrupted.replace("fastvec: stopped", "^Cfastvec: stopped"))
        show(console, EMBED, run(EMBED, folder))
        show(console, VERIFY, run(VERIFY, folder))
    # without the fonts that rich's template loads from another host
    template = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(str(ROOT / "docs/run.svg"), title="fastvec", code_format=template)


def run(command: str, folder: Path, *, interrupt_after: float | None = None) -> str:
    """What `command` prints, in `folder`; Ctrl-C comes after `interrupt_after` seconds."""
    arguments = [sys.executable, "-m", *command.split()]
    process = subprocess.Popen(
        arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )
    if interrupt_after is not None:
        time.sleep(interrupt_after)
        process.send_signal(signal.SIGINT)
    return process.communicate()[0]


def environment() -> dict[str, str]:
    """The present environment with this checkout first on the path."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}


def show(console: Console, command: str, output: str) -> None:
    console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
    for line in output.splitlines():
        if not line.startswith("used the bundled"):  # the same advice after each run
            console.print(Text(line))


if __name__ == "__main__":
    main()
