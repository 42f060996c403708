"""The commands `fastvec convert` and `fastvec merge`."""

import click

from fastvec.cli import options as shared
from fastvec.cli.signals import interrupted_by_signal
from fastvec.cli.streams import end_job


@click.command(short_help="Convert an output to Parquet, NumPy or Lance.")
@click.argument("file", type=click.Path())
@click.argument("output", metavar="OUT.parquet|OUT.npy|OUT.lance", type=click.Path())
@click.option("--vector-column", help="Which column of vectors a .npy file gets, if there are several.")
@shared.replace
@shared.quiet
@shared.as_json
def convert(file: str, output: str, vector_column: str | None, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Convert a finished output to the format that the suffix of OUT names.

    .parquet has the same columns and metadata. .npy has the vectors alone, without the rows that have none; their row
    numbers are in OUT.rows.npy. .lance is a Lance dataset.
    """
    from fastvec.output.convert import convert as run

    with interrupted_by_signal():
        report = run(file, output, vector_column=vector_column, overwrite=overwrite)
    end_job(report, as_json=as_json, quiet=quiet)


@click.command(short_help="Join outputs of the same model and settings.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", required=True, metavar="OUT.arrow|OUT.parquet", help="The file to write.")
@shared.replace
@shared.quiet
@shared.as_json
def merge(files: tuple[str, ...], output: str, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Join finished outputs of the same model and settings, in the order given.

    Rows are numbered anew over all of them. A single FILE that is a folder of shards becomes the file that a run in one
    process would have written.
    """
    from fastvec.shards.merge import merge as run

    with interrupted_by_signal():
        report = run(files, output, overwrite=overwrite)
    end_job(report, as_json=as_json, quiet=quiet)
