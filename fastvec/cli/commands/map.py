"""The command `fastvec map`."""

import click

from fastvec.cli import options as shared
from fastvec.cli.signals import interrupted_by_signal
from fastvec.cli.streams import end_job, log_to_stderr


@click.command(name="map", short_help="Draw the vectors as a map of the corpus.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", required=True, metavar="OUT.html|OUT.png", help="The page or picture to write.")
@click.option("--png", metavar="OUT.png", help="Also write a picture, beside the page.")
@click.option("--label", metavar="COL", help="The kept column of titles. [default: title, name, ... or the first]")
@click.option("--color", metavar="COL", help="A kept column that colors the points. [default: their clusters]")
@click.option("--vector-column", help="Which column of vectors to draw, if there are several.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=50_000,
    show_default=True,
    metavar="N",
    help="Of more rows, draw N, evenly over the files.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, another map.")
@shared.replace
@shared.quiet
@shared.as_json
def map_(
    files: tuple[str, ...],
    output: str,
    png: str | None,
    label: str | None,
    color: str | None,
    vector_column: str | None,
    limit: int,
    seed: int,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Draw finished outputs, files or folders of shards, on a page that shows each text under the mouse.

    Texts with similar vectors are near each other. Clusters are named by words typical of their texts. The page has a
    search box, and opens in a browser without a network.
    """
    from fastvec.maps.job import draw_map

    log_to_stderr(quiet or as_json)
    with interrupted_by_signal():
        report = draw_map(
            files,
            output,
            png=png,
            label=label,
            color=color,
            vector_column=vector_column,
            limit=limit,
            seed=seed,
            overwrite=overwrite,
        )
    end_job(report, as_json=as_json, quiet=quiet)
