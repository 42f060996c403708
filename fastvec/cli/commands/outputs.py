"""The commands `fastvec verify` and `fastvec inspect`."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import click

from fastvec.cli.signals import interrupted_by_signal
from fastvec.cli.streams import print_report


@click.command(short_help="Check that an output is intact.")
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify(file: str, as_json: bool) -> None:
    """Check that an output is intact: checksums, metadata, columns, row order, counts and values.

    FILE is an output file, or a folder of shards, all of which are checked.

    The exit code is 1 if a check fails.
    """
    from fastvec.output.verify import verify as verify_file
    from fastvec.shards.folder import is_folder, open_folder
    from fastvec.shards.verify import verify_folder

    if is_folder(file):
        with interrupted_by_signal():
            of_folder = verify_folder(open_folder(file))
        print_report(of_folder, as_json)
    with interrupted_by_signal(), _local(file, with_errors=True) as path:
        report = verify_file(path)
        checks = tuple(replace(check, detail=check.detail.replace(path, file)) for check in report.checks)
        print_report(replace(report, path=file, checks=checks), as_json)


@click.command(short_help="Show what an output contains.")
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(file: str, as_json: bool) -> None:
    """Describe an output file, or a folder of shards: size, model, rows, nulls, vectors, kept columns and inputs."""
    from fastvec.output.inspect import inspect as inspect_file
    from fastvec.shards.folder import is_folder, open_folder
    from fastvec.shards.inspect import inspect_folder

    if is_folder(file):
        print_report(inspect_folder(open_folder(file)), as_json)
    with interrupted_by_signal(), _local(file) as path:
        print_report(replace(inspect_file(path), path=file), as_json)


@contextmanager
def _local(file: str, *, with_errors: bool = False) -> Iterator[str]:
    """Yield the path of a file, or of a copy of a file in a store, which errors do not name.

    Beside the copy is one of the file of row errors, if there is one and it is asked for.
    """
    from fastvec.errors import OutputError
    from fastvec.output.ownership import errors_name, errors_path
    from fastvec.stores.address import Address, is_remote
    from fastvec.stores.spool import fetched
    from fastvec.stores.store import download

    if not is_remote(file):
        yield file
        return
    address = Address.parse(file)
    try:
        with fetched(address) as copy:
            if with_errors:
                with suppress(FileNotFoundError):
                    download(address.with_name(errors_name(address.name)), errors_path(copy))
            try:
                yield str(copy)
            except OutputError as error:
                raise type(error)(str(error).replace(str(copy), str(address))) from error
    except FileNotFoundError:
        raise OutputError(f"{address}: no such file or bucket") from None
