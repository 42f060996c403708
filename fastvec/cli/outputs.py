"""The commands `fastvec verify` and `fastvec inspect`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

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

    with _local(file) as path:
        report = run(path)
        checks = tuple(replace(check, detail=check.detail.replace(path, file)) for check in report.checks)
        print_report(replace(report, path=file, checks=checks), as_json)


@click.command(short_help="Show what an output file contains.")
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(file: str, as_json: bool) -> None:
    """Describe an output file: size, model, rows, nulls, dimensions, vector norms, kept columns and inputs."""
    from fastvec.output.inspect import inspect as run

    with _local(file) as path:
        print_report(replace(run(path), path=file), as_json)


@contextmanager
def _local(file: str) -> Iterator[str]:
    """Yield the path of a file, or of a copy of a file in a store, which errors do not name."""
    from fastvec.errors import OutputError
    from fastvec.stores.address import Address, is_remote
    from fastvec.stores.spool import fetched

    if not is_remote(file):
        yield file
        return
    address = Address.parse(file)
    try:
        with fetched(address) as copy:
            try:
                yield str(copy)
            except OutputError as error:
                raise type(error)(str(error).replace(str(copy), str(address))) from error
    except FileNotFoundError:
        raise OutputError(f"{address}: no such file or bucket") from None
