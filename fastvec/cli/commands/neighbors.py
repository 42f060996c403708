"""The commands `fastvec dedup` and `fastvec neighbors`."""

from typing import Any

import click

from fastvec.cli import options as shared
from fastvec.cli.progress import progress_display
from fastvec.cli.signals import interrupted_by_signal
from fastvec.cli.streams import end_job

files = click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
output = click.option(
    "-o", "--output", required=True, metavar="OUT.parquet", help="The file to write: .parquet, .arrow or .jsonl."
)
vector_column = click.option("--vector-column", help="Which column of vectors to compare, if there are several.")
device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where rows are compared; auto is a GPU, if there is one and the rows are many.",
)


@click.command(short_help="Find near-duplicates in outputs.")
@files
@output
@click.option(
    "--threshold", type=float, required=True, help="The cosine similarity from which two rows are near-duplicates."
)
@click.option("--pairs", metavar="PAIRS.parquet", help="Also write all pairs that are that similar, with similarities.")
@click.option(
    "--against",
    multiple=True,
    metavar="FILE",
    help="Find rows that are near a row of this output instead, such as a test set; repeat for more.",
)
@vector_column
@device
@shared.replace
@shared.quiet
@shared.as_json
def dedup(quiet: bool, as_json: bool, **options: Any) -> None:
    """Find near-duplicates among the rows of finished outputs, files or folders of shards, by comparing all pairs.

    OUT has a line for each row: the kept columns, `row`, `group` (the first row of its near-duplicates) and `keep`,
    which is true for one row of each group.
    """
    from fastvec.pairs.dedup import dedup as run

    with interrupted_by_signal(), progress_display(quiet=quiet or as_json) as progress:
        report = run(**options, progress=progress)
    end_job(report, as_json=as_json, quiet=quiet)


@click.command(short_help="Find the nearest rows of each row.")
@files
@output
@click.option(
    "-k", "--top-k", "k", type=int, default=10, show_default=True, help="How many neighbors a row has, at most."
)
@click.option("--threshold", type=float, help="The least cosine similarity of a neighbor. [default: none]")
@vector_column
@device
@shared.replace
@shared.quiet
@shared.as_json
def neighbors(quiet: bool, as_json: bool, **options: Any) -> None:
    """Find the nearest other rows of each row of finished outputs, files or folders of shards, by comparing all pairs.

    OUT has a line for each neighbor: `row`, `rank` from 1, `neighbor` (a row) and `similarity`.
    """
    from fastvec.pairs.neighbors import neighbors as run

    with interrupted_by_signal(), progress_display(quiet=quiet or as_json) as progress:
        report = run(**options, progress=progress)
    end_job(report, as_json=as_json, quiet=quiet)
