"""The command `fastvec eval`."""

from typing import Any

import click

from fastvec.cli import options as shared
from fastvec.cli.signals import interrupted_by_signal
from fastvec.cli.streams import log_to_stderr, print_report


@click.command("eval", short_help="Judge models on your own data.")
@click.option(
    "--model",
    "models",
    multiple=True,
    help="A folder or hub id; repeat to compare several. [default: bundled]",
)
@shared.adapter
@click.option(
    "--pairs", multiple=True, metavar="FILE", help="Pairs of texts with scores, for similarity; repeat for more files."
)
@click.option(
    "--pair-columns", metavar="A,B,SCORE", help="The columns of --pairs. [default: sentence1,sentence2,score]"
)
@click.option(
    "--beir",
    multiple=True,
    metavar="DIR",
    help="For retrieval: a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv; repeat for more.",
)
@click.option("--queries", metavar="FILE", help="For retrieval: _id and text of queries.")
@click.option("--corpus", metavar="FILE", help="For retrieval: _id, text and perhaps title of documents.")
@click.option("--qrels", metavar="FILE", help="For retrieval: query-id, corpus-id and score, or TREC's four columns.")
@click.option("--train", metavar="FILE", help="For classification: texts with labels, to be neighbours.")
@click.option("--test", metavar="FILE", help="For classification: texts with labels, to be classified.")
@click.option(
    "--clusters", multiple=True, metavar="FILE", help="Texts with labels, for clustering; repeat for more files."
)
@click.option("--text-column", default="text", show_default=True, help="The texts in files with labels.")
@click.option("--label-column", default="label", show_default=True, help="The labels.")
@click.option("--baselines/--no-baselines", default=True, help="Judge TF-IDF and BM25 too. [default: yes]")
@click.option("--instruction", help="An instruction before every text, except in retrieval.")
@click.option("--query-instruction", help="An instruction before every query. [default: the checkpoint's prompt]")
@shared.dims
@click.option(
    "--max-length",
    type=int,
    help="Maximum tokens per text; longer texts are truncated. [default: as the checkpoint says]",
)
@shared.device
@shared.dtype
@click.option("-o", "--output", metavar="DIR", help="A folder to write eval.json and eval.png to.")
@shared.overwrite
@shared.quiet
@shared.as_json
def evaluate(quiet: bool, as_json: bool, models: tuple[str, ...], pair_columns: str | None, **options: Any) -> None:
    """Judge one or several models on tasks of your own, beside TF-IDF and BM25.

    Similarity (--pairs) is measured by Spearman's correlation; retrieval (--beir, or --queries, --corpus and --qrels)
    by nDCG@10, recall@100 and MRR@10; classification by the nearest neighbour (--train and --test) by accuracy and
    macro F1; clustering (--clusters) by V-measure. Scores have 95 % bootstrap intervals.

    Files are Parquet, Arrow, JSON lines, CSV or TSV.
    """
    from fastvec.evaluation.evaluate import evaluate as run

    log_to_stderr(quiet)
    columns = None if pair_columns is None else [name.strip() for name in pair_columns.split(",")]
    with interrupted_by_signal():
        report = run(list(models) or None, pair_columns=columns, show_progress_bar=not quiet, **options)
    print_report(report, as_json)
