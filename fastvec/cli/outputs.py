"""The commands `fastvec verify` and `fastvec inspect`."""

from pathlib import Path

import click

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
    from fastvec.shards.folder import LocalFolder
    from fastvec.shards.verify import verify_folder

    path = Path(file)
    print_report(verify_folder(LocalFolder(path)) if path.is_dir() else verify_file(path), as_json)


@click.command(short_help="Show what an output contains.")
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(file: str, as_json: bool) -> None:
    """Describe an output file, or a folder of shards: size, model, rows, nulls, vectors, kept columns and inputs."""
    from fastvec.output.inspect import inspect as inspect_file
    from fastvec.shards.folder import LocalFolder
    from fastvec.shards.inspect import inspect_folder

    path = Path(file)
    print_report(inspect_folder(LocalFolder(path)) if path.is_dir() else inspect_file(path), as_json)
