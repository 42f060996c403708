"""`fastvec verify` and `fastvec inspect`."""

import click

from fastvec.cli.streams import print_report


@click.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify(file: str, as_json: bool) -> None:
    """Check every promise about an output file: bytes, order, counts, values, metadata."""
    from fastvec.output.verify import verify as run

    print_report(run(file), as_json)


@click.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(file: str, as_json: bool) -> None:
    """Show what an output file is: model, rows, dimensions, nulls, norms, size."""
    from fastvec.output.inspect import inspect as run

    print_report(run(file), as_json)
