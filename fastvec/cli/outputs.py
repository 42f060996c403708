"""The commands `fastvec verify` and `fastvec inspect`."""

from collections.abc import Callable
from typing import Any

import click

from fastvec.cli.streams import print_report


@click.command(short_help="Check that an output file is intact.")
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify(file: str, as_json: bool) -> None:
    """Check that an output file is intact: checksums, metadata, columns, row order, counts and values.

    The exit code is 1 if a check fails.
    """
    from fastvec.output.verify import verify as run

    print_report(_of_local(run, file), as_json)


@click.command(short_help="Show what an output file contains.")
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(file: str, as_json: bool) -> None:
    """Describe an output file: size, model, rows, nulls, dimensions, vector norms, kept columns and inputs."""
    from fastvec.output.inspect import inspect as run

    print_report(_of_local(run, file), as_json)


def _of_local(run: Callable[[str], Any], file: str) -> Any:
    """Return what `run` says of a file, or of a copy of a file in a store."""
    from dataclasses import replace

    from fastvec.errors import OutputError
    from fastvec.stores.address import Address, is_remote
    from fastvec.stores.spool import fetched

    if not is_remote(file):
        return run(file)
    address = Address.parse(file)
    try:
        with fetched(address) as copy:
            try:
                return replace(run(str(copy)), path=str(address))
            except OutputError as error:
                raise type(error)(str(error).replace(str(copy), str(address))) from error
    except FileNotFoundError:
        raise OutputError(f"{address}: no such file or bucket") from None
