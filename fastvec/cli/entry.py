"""The `fastvec` command: its subcommands, their environment variables, and exit codes for errors."""

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import click

from fastvec import __version__
from fastvec.cli.commands.adapt import adapt
from fastvec.cli.commands.convert import convert, merge
from fastvec.cli.commands.doctor import doctor
from fastvec.cli.commands.embed import embed
from fastvec.cli.commands.eval import evaluate
from fastvec.cli.commands.map import map_
from fastvec.cli.commands.neighbors import dedup, neighbors
from fastvec.cli.commands.outputs import inspect, verify
from fastvec.cli.commands.search import search
from fastvec.cli.streams import fail, open_closed_streams
from fastvec.errors import FastvecError
from fastvec.system.memory import translated_memory_errors

# between two garbage collections; with Python's 700, collections take a tenth of the time of importing torch
ALLOCATIONS = 50_000


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Embed text corpora with decoder language models, and train decoders into text encoders."""


for _command in (embed, adapt, search, dedup, neighbors, map_, evaluate, verify, inspect, convert, merge, doctor):
    cli.add_command(_command)
    # click would name an environment variable after the parameter, e.g. `adapters` for --adapter; users only see the
    # option, so the variable is named after that
    for _option in _command.params:
        if isinstance(_option, click.Option):
            _long = next(name for name in _option.opts if name.startswith("--"))
            _option.envvar = f"FASTVEC_{_command.name}_{_long[2:]}".upper().replace("-", "_")


def process() -> NoReturn:
    """Run `main` as a process, which ends without tearing down every imported module: with torch, up to 0.4 s.

    Threads are joined and all other exit handlers run before. An exception, which is a bug, ends as usual.
    """
    codes: list[int] = []
    atexit.register(_end, codes)  # handlers run in the reverse of the order in which they were registered
    try:
        main()
    except SystemExit as end:
        codes.append(int(end.code or 0))
        raise


def _end(codes: Sequence[int]) -> None:
    with suppress(OSError):  # for Python to report, in its own way
        sys.stdout.flush()
        sys.stderr.flush()
        if codes:
            os._exit(codes[0])


def main() -> NoReturn:
    """Run the command line; an error that a user can cause becomes one line on stderr and an exit code."""
    try:
        gc.set_threshold(ALLOCATIONS)
        os.environ["RUST_BACKTRACE"] = "0"  # a panic of tokenizers for lack of memory hangs while it prints one
        open_closed_streams()
        with translated_memory_errors():
            cli(prog_name="fastvec", standalone_mode=False)
    except FastvecError as error:
        fail(str(error), error.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):  # the second before click runs
        fail("stopped", 130)
    except click.ClickException as error:
        fail(error.format_message(), error.exit_code)
    sys.exit(0)
