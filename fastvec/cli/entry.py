"""The command line: parse, one call, print the report, exit code. People read stderr, programs stdout."""

import sys
from typing import NoReturn

import click

from fastvec import __version__
from fastvec.cli.adapt import adapt
from fastvec.cli.embed import embed
from fastvec.cli.outputs import inspect, verify
from fastvec.cli.streams import fail, open_closed_streams
from fastvec.errors import FastvecError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Turn a corpus into vectors with a decoder language model."""


for _command in (embed, adapt, verify, inspect):
    cli.add_command(_command)
    # click names a variable after the parameter, which is `adapters` for --adapter: here it follows from what users see
    for _option in _command.params:
        if isinstance(_option, click.Option):
            _long = next(name for name in _option.opts if name.startswith("--"))
            _option.envvar = f"FASTVEC_{_command.name}_{_long[2:]}".upper().replace("-", "_")


def main() -> NoReturn:
    """The entry point: every error a user can cause is one line on stderr and an exit code."""
    open_closed_streams()
    try:
        cli(prog_name="fastvec", standalone_mode=False)
    except FastvecError as error:
        fail(str(error), error.exit_code)
    except click.exceptions.Abort:
        fail("stopped", 130)
    except click.ClickException as error:
        fail(error.format_message(), error.exit_code)
    sys.exit(0)
