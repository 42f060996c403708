"""Options that several commands share."""

import click

adapter = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    help="A PEFT adapter (folder or hub id) to merge first; repeat to merge several, in this order.",
)
revision = click.option("--revision", help="The hub revision of the model.")
pooling = click.option(
    "--pooling",
    type=click.Choice(["mean", "weighted_mean", "last", "first"]),
    help="How a text's tokens become one vector. [default: as the checkpoint says]",
)
bidirectional = click.option(
    "--bidirectional/--causal", default=None, help="Direction of attention. [default: as the checkpoint says]"
)
eos = click.option(
    "--eos/--no-eos", default=None, help="Whether EOS ends every sequence. [default: as the checkpoint says]"
)
device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the model runs; auto is a GPU if there is one.",
)
report = click.option(
    "--report",
    metavar="FILE.html",
    help="Write a page about the run when it is done, with figures. It replaces a report.",
)
dtype = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="The dtype of the computation.",
)
dims = click.option("--dims", type=int, help="Keep the first N dimensions. [default: as the checkpoint says]")
replace = click.option("--overwrite", is_flag=True, help="Replace existing files.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace another job's output.")
quiet = click.option("--quiet", is_flag=True, help="Print errors only.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document at the end.")
