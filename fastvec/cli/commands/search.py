"""The command `fastvec search`."""

import logging
import os
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from fastvec.cli import options as shared
from fastvec.cli.progress import progress_display
from fastvec.cli.signals import interrupted_by_signal
from fastvec.cli.streams import end_job, log_to_stderr, print_report

OF_AN_INDEX = ("output", "model", "adapters", "vector_column", "overwrite")  # the options that go with --index


@click.command(short_help="Search outputs for the texts nearest to a query.")
@click.argument("files", metavar="FILE... QUERY", nargs=-1, required=True)
@click.option("--queries", metavar="FILE", help="A file of queries, in any format that embed reads, instead of QUERY.")
@click.option("--query-column", metavar="COL", help="The text column of --queries. [default: as embed chooses it]")
@click.option("-k", "--top-k", "k", type=int, default=10, show_default=True, help="Rows to find for each query.")
@click.option(
    "--filter", metavar="CONDITION", help="Search only rows for which it holds: \"year > 1990 and lang == 'en'\"."
)
@click.option("--keep", multiple=True, metavar="COL", help="A kept column to show; repeat for more. [default: all]")
@click.option(
    "--text/--no-text",
    default=None,
    help="Show the texts, which are read from the inputs. [default: if no kept column is shown]",
)
@click.option("--instruction", help="An instruction to put before every query.")
@click.option(
    "--prompt-name",
    help="The name of the checkpoint's prompt to put before every query. [default: query, or as before the texts]",
)
@click.option("--model", help="Where the model is that made the vectors. [default: where the output says]")
@shared.adapter
@click.option("--vector-column", help="Which column of vectors to search, if there are several.")
@shared.device
@click.option("-o", "--output", metavar="OUT", help="A .parquet, .arrow or .jsonl file for the hits.")
@click.option(
    "--index",
    type=click.Choice(["faiss", "lance"]),
    help="Search for nothing: write an approximate index of the FILEs for this library to -o.",
)
@shared.replace
@shared.quiet
@shared.as_json
def search(
    files: tuple[str, ...], queries: str | None, query_column: str | None, index: str | None, **options: Any
) -> None:
    """Find the texts whose vectors are nearest to that of a query, by comparing it with all of them.

    A FILE is an output of fastvec embed, or a folder of shards; several must be of the same model and settings. QUERY,
    the last argument, is a text, encoded by the model that made the vectors. With --index, all arguments are FILEs.
    """
    from fastvec.retrieval.job import read_queries
    from fastvec.retrieval.job import search as run
    from fastvec.stores.address import is_remote

    quiet, as_json = options.pop("quiet"), options.pop("as_json")
    log_to_stderr(quiet, logging.WARNING)  # how the model runs was said when it embedded the texts
    if index is not None:
        _write_index(files, index, options, quiet=quiet, as_json=as_json)
    if queries is None:
        if query_column is not None:
            raise click.UsageError("--query-column needs --queries")
        is_file = os.path.exists(files[-1])  # Path.exists raises for a query longer than a name
        if len(files) == 1 or is_file:
            found = f", {files[-1]} is a file" if is_file else ""
            raise click.UsageError(f'a query is missing{found}: fastvec search FILE "a question", or --queries FILE')
        files, texts = files[:-1], [files[-1]]
    else:
        if not (os.path.exists(files[-1]) or is_remote(files[-1]) or Path(files[-1]).suffix):
            raise click.UsageError(f"a query {files[-1]!r} and --queries were both given: leave one out")
        texts = read_queries(queries, query_column, output=options["output"])
    options["keep"] = options["keep"] or None
    with interrupted_by_signal(), progress_display(quiet=quiet or as_json) as progress:
        report = run(files, texts, progress=progress, **options)
    if report.output is not None:
        end_job(report, as_json=as_json, quiet=quiet)
    print_report(report, as_json)


def _write_index(files: tuple[str, ...], kind: str, options: dict[str, Any], *, quiet: bool, as_json: bool) -> NoReturn:
    from fastvec.retrieval.index import write_index

    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name not in (*OF_AN_INDEX, "files", "index", "quiet", "as_json"):
            raise click.UsageError(f"{option.opts[0]} is for a search: --index only writes an index")
    if options["output"] is None:
        raise click.UsageError(f"--index needs a name for the index: -o vecs.{kind}")
    with interrupted_by_signal(), progress_display(quiet=quiet or as_json) as progress:
        chosen: dict[str, Any] = {name: options[name] for name in OF_AN_INDEX}
        report = write_index(files, kind=kind, progress=progress, **chosen)  # type: ignore[arg-type]  # click checks it
    end_job(report, as_json=as_json, quiet=quiet)
