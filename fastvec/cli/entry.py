"""The command line: parse, one call, print the report, exit code. People read stderr, programs stdout."""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

from fastvec import __version__
from fastvec.cli.progress import nowhere, progress_display, say
from fastvec.errors import FastvecError

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


class TokenBudget(click.ParamType[int | None]):
    """A number of tokens, or `auto` for None."""

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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Turn a corpus into vectors with a decoder language model."""


@cli.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="OUT.arrow", help="The Arrow file to write.")
@click.option(
    "--model",
    help="A folder or hub id: transformers, LLM2Vec, PEFT, sentence-transformers. [default: bundled]",
)
@click.option("--adapter", "adapters", multiple=True, help="A PEFT folder or id to merge; repeat to merge in order.")
@click.option("--revision", help="The hub revision of the model.")
@click.option("--column", help="The text column. [default: the only one, or one named text, content, body, …]")
@click.option("--keep", multiple=True, metavar="COL", help="A column to copy to the output; repeat for more.")
@click.option("--keep-all", is_flag=True, help="Copy every column.")
@click.option("--instruction", help="A text before every text, which is not pooled.")
@click.option("--prompt-name", help="A prompt of the checkpoint to put before every text.")
@click.option(
    "--pooling", type=click.Choice(["mean", "weighted_mean", "last", "first"]), help="[default: as the checkpoint says]"
)
@click.option("--normalize/--no-normalize", default=None, help="Vectors of length 1. [default: as the checkpoint says]")
@click.option("--bidirectional/--causal", default=None, help="What attention sees. [default: as the checkpoint says]")
@click.option("--eos/--no-eos", default=None, help="EOS ends every sequence. [default: as the checkpoint says]")
@click.option("--dims", type=int, help="Keep the first N dimensions. [default: as the checkpoint says]")
@click.option(
    "--vector-dtype",
    type=click.Choice(["float32", "float16", "int8", "binary"]),
    default="float32",
    show_default=True,
    help="How vectors are stored.",
)
@click.option("--vector-column", default="embedding", show_default=True, help="The vectors' column.")
@click.option("--max-length", type=int, help="Tokens of a text; longer ones are cut. [default: as the checkpoint says]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Of the computation.",
)
@click.option(
    "--quantize",
    type=click.Choice(["int8", "fp8"]),
    help="Multiply in eight bits: int8 on CPUs, fp8 on GPUs from Hopper on; the first texts are compared with --dtype.",
)
@click.option(
    "--batch-tokens",
    type=TokenBudget(),
    default="auto",
    show_default=True,
    metavar="N|auto",
    help="Tokens of a forward.",
)
@click.option(
    "--on-error",
    type=click.Choice(["null", "fail"]),
    default="null",
    show_default=True,
    help="A text without a finite vector: a null and an error line, or stop.",
)
@click.option("--max-errors", type=int, metavar="N", help="Stop when more than N texts have no vector.")
@click.option("--limit", type=int, metavar="N", help="Only the first N rows.")
@click.option("--overwrite", is_flag=True, help="Replace another job's output.")
@click.option("--dry-run", is_flag=True, help="Say what it would take; write nothing.")
@click.option("--quiet", is_flag=True, help="Errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document at the end.")
def embed(quiet: bool, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Embed the text column of Parquet or Arrow files into one Arrow file.

    A row out for each row in, in order. The same command again goes on where it stopped.
    """
    from fastvec.checkpoints.settings import resolve_settings
    from fastvec.embedding.job import embed as run

    _log_to_stderr(quiet)
    if options.pop("keep_all"):
        if options["keep"]:
            raise click.UsageError("--keep and --keep-all were both given: choose one")
        options["keep"] = None
    settings = resolve_settings(**{name: options.pop(name) for name in ENCODER_OPTIONS})
    if dry_run:
        result: Any = _dry_run(settings, options)
    else:
        with _stop_signal() as stop_signal, progress_display(quiet=quiet or as_json) as progress:
            result = run(**options, encoder=settings, progress=progress, stop_signal=stop_signal)
    if as_json:
        _print(json.dumps(result.to_json()))
    elif not quiet:
        say(str(result))
    sys.exit(result.return_code)


@cli.command()
@click.option(
    "--objective",
    required=True,
    type=click.Choice(["mntp", "simcse", "contrastive", "distil"]),
    help="What to learn by.",
)
@click.option("--model", required=True, help="The decoder: a folder or hub id, adapted already or not.")
@click.option("--adapter", "adapters", multiple=True, help="A PEFT folder or id to merge first; repeat for more.")
@click.option("--revision", help="The hub revision of the model.")
@click.option("--data", multiple=True, required=True, metavar="FILE", help="Parquet, Arrow or .txt lines; repeat.")
@click.option("--column", help="The text column. [default: the only one, or one named text, content, body, …]")
@click.option("--query", metavar="COL", help="contrastive: the column of queries.")
@click.option("--positive", metavar="COL", help="contrastive: the column of what answers them.")
@click.option("--negative", "negatives", multiple=True, metavar="COL", help="contrastive: hard negatives; repeat.")
@click.option("--vectors", metavar="COL", help="distil: the column of a teacher's vectors. [default: embedding]")
@click.option("-o", "--output", required=True, metavar="DIR", help="The folder to make.")
@click.option("--steps", type=int, help="Optimiser steps. [default: 1000]")
@click.option("--batch-size", type=int, help="Sequences of a step and process. [default: 32; 128; 512; 256]")
@click.option("--max-length", type=int, help="Tokens of a sequence. [default: 512; 128; 512; 128]")
@click.option("--lr", type=float, help="The peak learning rate. [default: 5e-5; 3e-5; 2e-4; 2e-4]")
@click.option("--warmup", type=int, help="Steps to reach it. [default: 0; contrastive 300, at most 3 in 10]")
@click.option("--schedule", type=click.Choice(["linear", "cosine"]), help="How it falls then, to 0. [default: linear]")
@click.option("--weight-decay", type=float, help="AdamW's. [default: 0]")
@click.option("--seed", type=int, help="Of order, masks, noise and the held-out rows. [default: 42]")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", help="Of the computation.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--lora-r", type=int, help="The rank of the adapter. [default: 16]")
@click.option("--lora-alpha", type=int, help="Its scale, times the rank. [default: 32]")
@click.option("--lora-dropout", type=float, help="Before the adapter. [default: 0.05]")
@click.option("--full", is_flag=True, default=None, help="Train all weights instead of an adapter.")
@click.option("--attention-dropout", type=float, help="Of attention's probabilities. [default: simcse 0.3, else 0]")
@click.option("--temperature", type=float, help="Cosines are divided by it. [default: simcse 0.05, contrastive 0.02]")
@click.option("--grad-cache", type=int, metavar="N", help="N texts in memory at a time. [default: contrastive 64]")
@click.option("--mask-probability", type=float, help="mntp: the share of hidden tokens. [default: 0.2]")
@click.option("--mask-style", type=click.Choice(["bert", "all"]), help="mntp: 80/10/10, or all masked. [default: bert]")
@click.option("--mask-token", help="mntp: the token that hides. [default: the tokenizer's, else _]")
@click.option("--pool-tokens", type=click.Choice(["text", "all"]), help="What is pooled. [default: as the model says]")
@click.option(
    "--pooling", type=click.Choice(["mean", "weighted_mean", "last", "first"]), help="[default: as the model says]"
)
@click.option("--bidirectional/--causal", default=None, help="What attention sees. [default: as the model says]")
@click.option("--eos/--no-eos", default=None, help="EOS ends every sequence. [default: as the model says]")
@click.option("--instruction", help="A text before every query (simcse: every text), which is not pooled.")
@click.option(
    "--eval-pairs", metavar="FILE", help="CSV of sentence1, sentence2, score: Spearman before, during, after."
)
@click.option("--eval-every", type=int, metavar="N", help="Measure every N steps. [default: a tenth of all]")
@click.option("--hold-out", type=float, help="The share of rows never trained on, but measured. [default: 0.01]")
@click.option("--save-every", type=int, metavar="N", help="A checkpoint every N steps. [default: 100]")
@click.option("--merge", is_flag=True, help="Save whole weights, for transformers, vLLM and sentence-transformers.")
@click.option("--overwrite", is_flag=True, help="Replace another job's output.")
@click.option("--quiet", is_flag=True, help="Errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document at the end.")
def adapt(quiet: bool, as_json: bool, **options: Any) -> None:
    """Turn a decoder into a text encoder: mntp, then simcse, contrastive pairs, or distil from a teacher's vectors.

    Defaults are the paper's (LLM2Vec); where four are given, those of mntp; simcse; contrastive; distil. The same
    command again goes on where it stopped.
    """
    from fastvec.training.job import adapt as run

    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes one speaks
    _log_to_stderr(quiet or not first)
    with _stop_signal() as stop_signal, progress_display(quiet=quiet or as_json) as progress:
        report = run(**options, progress=progress, stop_signal=stop_signal)
    if as_json and first:
        _print(json.dumps(report.to_json()))
    elif not quiet and first:
        say(str(report))
    sys.exit(report.return_code)


@cli.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify(file: str, as_json: bool) -> None:
    """Check every promise about an output file: bytes, order, counts, values, metadata."""
    from fastvec.output.inspection import verify as run

    _print_report(run(file), as_json)


@cli.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(file: str, as_json: bool) -> None:
    """Show what an output file is: model, rows, dimensions, nulls, norms, size."""
    from fastvec.output.inspection import inspect as run

    _print_report(run(file), as_json)


# click names a variable after the parameter, which is `adapters` for --adapter: here it follows from what users see
for _command in cli.commands.values():
    for _option in _command.params:
        if isinstance(_option, click.Option):
            _long = next(name for name in _option.opts if name.startswith("--"))
            _option.envvar = f"FASTVEC_{_command.name}_{_long[2:]}".upper().replace("-", "_")


def main() -> NoReturn:
    """The entry point: every error a user can cause is one line on stderr and an exit code."""
    _open_closed_streams()
    try:
        cli(prog_name="fastvec", standalone_mode=False)
    except FastvecError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.Abort:
        _fail("stopped", 130)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    sys.exit(0)


def _fail(message: str, exit_code: int) -> NoReturn:
    say(f"fastvec: {message}")
    sys.exit(exit_code)


def _open_closed_streams() -> None:
    """What was closed (`2>&-`) leads nowhere; else our files would get its number, and what libraries write to it."""
    for name in ("stdin", "stdout", "stderr"):  # in the order of their numbers: the lowest free one is taken
        if getattr(sys, name) is None:
            setattr(sys, name, nowhere())


def _print(text: str) -> None:
    """A result, on stdout."""
    try:
        click.echo(text)
    except OSError as error:
        sys.stdout = nowhere()  # at exit Python would try again, and complain in its own words
        _fail(f"the result cannot be written to stdout: {error.strerror}", 1)


def _dry_run(settings: Any, options: dict[str, Any]) -> Any:
    from fastvec.embedding.estimate import estimate
    from fastvec.embedding.plan import plan_embed
    from fastvec.encoder import Encoder

    batch_tokens = options.pop("batch_tokens")
    del options["overwrite"]  # nothing is written
    plan = plan_embed(**options, settings=settings)
    return estimate(plan, Encoder(settings, batch_tokens=batch_tokens))


def _print_report(report: Any, as_json: bool) -> NoReturn:
    _print(json.dumps(report.to_json()) if as_json else str(report))
    sys.exit(report.return_code)


class _StderrLog(logging.Handler):
    """Log lines as plain lines on whatever stderr is now, above a live progress line."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def _log_to_stderr(quiet: bool) -> None:
    log = logging.getLogger("fastvec")
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    if not log.handlers:
        log.addHandler(_StderrLog())


@contextmanager
def _stop_signal() -> Iterator[Callable[[], int | None]]:
    """The first SIGINT or SIGTERM is what the yielded function returns from then on; the second kills the process."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
