"""The command `fastvec embed`."""

import re
from collections.abc import Callable
from typing import Any

import click

from fastvec.cli import options as shared
from fastvec.cli.progress import progress_display
from fastvec.cli.signals import stop_on_signal
from fastvec.cli.streams import end_job, log_to_stderr

ENCODER_OPTIONS = (
    "model",
    "adapters",
    "revision",
    "pooling",
    "normalize",
    "bidirectional",
    "eos",
    "dims",
    "max_length",
    "device",
    "dtype",
    "quantize",
)


class Escaped(click.ParamType[str]):
    r"""A click type: a text in which `\n` is a line feed, `\t` a tab and `\\` a backslash."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        escapes = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
        return re.sub(r"\\[nt\\]", lambda found: escapes[found[0]], value)


class TokenBudget(click.ParamType[int | None]):
    """A click type: a number of tokens, or `auto`, which becomes None."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "auto":
            return None
        try:
            tokens = int(value)
        except ValueError:
            tokens = 0
        if tokens < 1:
            self.fail(f"{value!r} is neither auto nor a number of tokens", param, ctx)
        return tokens


@click.command(short_help="Embed a text column into one file of vectors.")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    help="An .arrow or .parquet file, or a folder for shards; also its address (s3://...).",
)
@click.option(
    "--model",
    help="A folder or hub id: transformers, LLM2Vec, PEFT, sentence-transformers. [default: bundled]",
)
@shared.adapter
@shared.revision
@click.option(
    "--column",
    multiple=True,
    help="The text column; repeat for several vectors a row. [default: the only string column, or one named text, ...]",
)
@click.option(
    "--template",
    type=Escaped(),
    metavar="TEMPLATE",
    help=r"The text of a row, instead of a column: '{title}\n{text}'. {meta.title} is a field of a struct.",
)
@click.option("--keep", multiple=True, metavar="COL", help="A column to copy to the output; repeat for more.")
@click.option("--keep-all", is_flag=True, help="Copy every column.")
@click.option("--instruction", help="An instruction to put before every text.")
@click.option("--instruction-column", metavar="COL", help="A column with an instruction for each row.")
@click.option("--prompt-name", help="The name of the checkpoint's prompt to put before every text.")
@shared.pooling
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Whether vectors are scaled to length 1. [default: as the checkpoint says]",
)
@shared.bidirectional
@shared.eos
@shared.dims
@click.option(
    "--vector-dtype",
    type=click.Choice(["float32", "float16", "int8", "binary"]),
    default="float32",
    show_default=True,
    help="How vectors are stored.",
)
@click.option("--vector-column", default="embedding", show_default=True, help="Name of the vector column.")
@click.option(
    "--max-length",
    type=int,
    help="Maximum tokens per sequence; longer texts are truncated. [default: as the checkpoint says]",
)
@click.option(
    "--long",
    type=click.Choice(["truncate", "mean", "chunks"]),
    default="truncate",
    show_default=True,
    help="A text above --max-length: cut it, average its passages' vectors, or write a row for each passage.",
)
@click.option("--overlap", type=int, default=0, metavar="N", help="Tokens that a passage shares with the next one.")
@click.option("--chunk-tokens", type=int, metavar="N", help="Tokens of a passage with --long chunks. [default: all]")
@click.option("--chunk-text", is_flag=True, help="Add a column with the text of each passage, with --long chunks.")
@click.option("--late", is_flag=True, help="Pool passages from one pass over as much text as --max-length holds.")
@shared.device
@shared.dtype
@click.option(
    "--quantize",
    type=click.Choice(["int8", "fp8"]),
    help="Multiply in eight bits: int8 on CPUs, fp8 on GPUs from Hopper on. Checked on the first texts.",
)
@click.option(
    "--batch-tokens",
    type=TokenBudget(),
    default="auto",
    show_default=True,
    metavar="N|auto",
    help="Tokens per forward pass.",
)
@click.option(
    "--on-error",
    type=click.Choice(["null", "fail"]),
    default="null",
    show_default=True,
    help="For a row that cannot be read or has no finite vector: write a null and an error line, or stop.",
)
@click.option(
    "--max-errors", type=int, metavar="N", help="Stop when more than N texts have no vector because of an error."
)
@click.option("--hash", is_flag=True, help="Add a column with the hash of each text, for --reuse.")
@click.option(
    "--reuse", metavar="OLD.arrow", help="Copy the vectors of texts that this output has; it needs hashes (--hash)."
)
@click.option("--shard", metavar="I/N", help="Only the shards of process I, from 0, of N that divide the job.")
@click.option("--shard-rows", type=int, metavar="N", help="About how many rows a shard has. [default: 1/64 of all]")
@click.option(
    "--devices", metavar="all|0,1|cpu:N", help="Embed shards in a process for each GPU, or in N processes on the CPU."
)
@click.option(
    "--engine", type=click.Choice(["ray"]), help="Embed shards on a Ray cluster (RAY_ADDRESS) or this machine."
)
@click.option("--limit", type=int, metavar="N", help="Only the first N rows.")
@click.option(
    "--verify/--no-verify",
    default=None,
    help="Read the output back from the disk before it is published. "
    "[default: 64 MiB of it, the rest if it takes at most 1% of the time]",
)
@shared.report
@shared.overwrite
@click.option("--dry-run", is_flag=True, help="Estimate tokens, size and time; write nothing.")
@shared.quiet
@shared.as_json
def embed(quiet: bool, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Embed the texts of Parquet, Arrow, JSON lines, CSV, TSV or text files into one Arrow or Parquet file.

    An INPUT is a file, a folder (searched recursively), a quoted glob pattern, one of these in an object store
    (s3://bucket/folder), hf://datasets/org/name, or - for stdin.
    The output has one row for each input row, in the same order.

    Run the same command again to resume an interrupted run.
    """
    from fastvec.jobs.embedding import embed as run
    from fastvec.jobs.ray_data import resolve_in_ray
    from fastvec.settings import resolve_settings

    log_to_stderr(quiet)
    if options.pop("keep_all"):
        if options["keep"]:
            raise click.UsageError("--keep and --keep-all were both given: choose one")
        options["keep"] = None
    if options["devices"] is not None:
        options["device"] = _device_of(options["devices"], options["device"])
    resolve = resolve_settings if options["engine"] is None or dry_run else resolve_in_ray
    settings = resolve(**{name: options.pop(name) for name in ENCODER_OPTIONS})
    with stop_on_signal() as stop_signal, progress_display(quiet=quiet or as_json) as progress:
        if dry_run:
            result: Any = _dry_run(settings, options, stop_signal)
        else:
            result = run(**options, encoder=settings, progress=progress, stop_signal=stop_signal)
    end_job(result, as_json=as_json, quiet=quiet)


def _device_of(devices: str, device: str) -> str:
    """Return the kind of device that `--devices` names, if `--device` names none."""
    from fastvec.jobs.devices import parse_devices

    found = parse_devices(devices)
    return device if found is None or device != "auto" else found.kind


def _dry_run(settings: Any, options: dict[str, Any], stop_signal: Callable[[], int | None]) -> Any:
    from fastvec.corpus.copies import local_inputs
    from fastvec.embedding.destination import written_to
    from fastvec.embedding.estimate import estimate
    from fastvec.embedding.options import EmbedOptions
    from fastvec.embedding.plan import plan_embed
    from fastvec.encoder import Encoder

    batch_tokens, output = options.pop("batch_tokens"), options.pop("output")
    for name in ("overwrite", "report", "shard", "shard_rows", "devices", "engine"):
        del options[name]  # nothing is written
    with written_to(output) as path, local_inputs(options.pop("inputs"), path, stop_signal) as inputs:
        plan = plan_embed(inputs, output, settings=settings, options=EmbedOptions(**options), stop_signal=stop_signal)
        return estimate(plan, Encoder(settings, batch_tokens=batch_tokens))
