"""The command `fastvec adapt`."""

from typing import Any

import click

from fastvec.cli import options as shared
from fastvec.cli.progress import progress_display
from fastvec.cli.signals import stop_on_signal
from fastvec.cli.streams import end_job, log_to_stderr


@click.command(short_help="Train a decoder into a text encoder.")
@click.option(
    "--objective",
    required=True,
    type=click.Choice(["mntp", "simcse", "contrastive", "distil"]),
    help="The training objective.",
)
@click.option("--model", required=True, help="The decoder: a folder or hub id; it may be adapted already.")
@shared.adapter
@shared.revision
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="FILE",
    help="Parquet, Arrow, JSON lines, CSV, TSV, or .txt with one text per line; repeat for more.",
)
@click.option("--column", help="The text column. [default: the only one, or one named text, content, body, …]")
@click.option("--query", metavar="COL", help="contrastive: the column of queries.")
@click.option("--positive", metavar="COL", help="contrastive: the column of passages that answer the queries.")
@click.option(
    "--negative",
    "negatives",
    multiple=True,
    metavar="COL",
    help="contrastive: a column of hard negatives; repeat for more.",
)
@click.option("--vectors", metavar="COL", help="distil: the column of a teacher's vectors. [default: embedding]")
@click.option("-o", "--output", required=True, metavar="DIR", help="The folder to create.")
@click.option("--steps", type=int, help="Optimizer steps. [default: 1000]")
@click.option(
    "--batch-size",
    type=int,
    help="Sequences per step and process. [default: mntp 32, simcse 128, contrastive 512, distil 256]",
)
@click.option(
    "--max-length",
    type=int,
    help="Maximum tokens per sequence. [default: mntp 512, simcse 128, contrastive 512, distil 128]",
)
@click.option(
    "--lr", type=float, help="The peak learning rate. [default: mntp 5e-5, simcse 3e-5, contrastive 2e-4, distil 2e-4]"
)
@click.option("--warmup", type=int, help="Warmup steps. [default: 0; contrastive: 300, at most 30% of --steps]")
@click.option(
    "--schedule",
    type=click.Choice(["linear", "cosine"]),
    help="How the learning rate decays to 0 after the warmup. [default: linear]",
)
@click.option("--weight-decay", type=float, help="Weight decay of AdamW. [default: 0]")
@click.option("--seed", type=int, help="Seed of the data order, masks, noise and held-out rows. [default: 42]")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="The dtype of the computation.",
)
@shared.device
@click.option("--lora-r", type=int, help="The rank of the LoRA adapter. [default: 16]")
@click.option("--lora-alpha", type=int, help="LoRA's alpha: the adapter's scale times its rank. [default: 32]")
@click.option("--lora-dropout", type=float, help="Dropout before the LoRA adapter. [default: 0.05]")
@click.option("--full", is_flag=True, default=None, help="Train all weights instead of an adapter.")
@click.option(
    "--attention-dropout", type=float, help="Dropout of attention probabilities. [default: simcse 0.3, else 0]"
)
@click.option(
    "--temperature", type=float, help="The temperature that divides cosines. [default: simcse 0.05, contrastive 0.02]"
)
@click.option(
    "--grad-cache", type=int, metavar="N", help="Encode N texts at a time, to save memory. [default: contrastive 64]"
)
@click.option("--mask-probability", type=float, help="mntp: the share of masked tokens. [default: 0.2]")
@click.option(
    "--mask-style",
    type=click.Choice(["bert", "all"]),
    help="mntp: 80% mask token, 10% random, 10% unchanged; or all mask token. [default: bert]",
)
@click.option("--mask-token", help="mntp: the mask token. [default: the tokenizer's, else _]")
@click.option(
    "--pool-tokens",
    type=click.Choice(["text", "all"]),
    help="Pool the text's tokens, or all. [default: as the model says]",
)
@shared.pooling
@shared.bidirectional
@shared.eos
@click.option(
    "--instruction",
    help="An instruction before every query, which the model keeps for queries (simcse, distil: before every text).",
)
@click.option(
    "--eval-pairs",
    metavar="FILE",
    help="CSV of sentence1, sentence2, score; measures Spearman's correlation before, during and after.",
)
@click.option("--eval-every", type=int, metavar="N", help="Evaluate every N steps. [default: a tenth of all steps]")
@click.option("--hold-out", type=float, help="The share of held-out rows, for evaluation only. [default: 0.01]")
@click.option("--save-every", type=int, metavar="N", help="Save a checkpoint every N steps. [default: 100]")
@click.option(
    "--merge",
    is_flag=True,
    help="Merge the adapter and save all weights, for transformers, vLLM and sentence-transformers.",
)
@click.option(
    "--fsdp",
    is_flag=True,
    help="Split the model over the processes that torchrun starts, instead of a copy in each.",
)
@shared.report
@shared.overwrite
@shared.quiet
@shared.as_json
def adapt(quiet: bool, as_json: bool, report: str | None, **options: Any) -> None:
    """Train a decoder into a text encoder.

    LLM2Vec trains with mntp (masked next token prediction) first, then with simcse (texts alone) or contrastive (pairs
    of texts). distil learns from the vectors of a teacher model. Each objective is a separate run.

    Defaults are those of the LLM2Vec paper, which does not cover distil.

    Run the same command again to resume an interrupted run.
    """
    from fastvec.distributed.ranks import one_report, own_rank
    from fastvec.run_report.adaptation import AdaptationPage
    from fastvec.training.job import adapt as run

    first = own_rank() == 0  # only rank 0 logs and reports
    quiet, as_json = quiet or not first, as_json and first
    log_to_stderr(quiet)
    show = progress_display(quiet=quiet or as_json)
    with one_report(), stop_on_signal() as stop_signal, show as progress:
        inputs = (*options["data"], *filter(None, [options["eval_pairs"]]))
        page = AdaptationPage(report, options["output"], inputs) if report is not None and first else None
        done = run(**options, progress=progress, stop_signal=stop_signal)
        if page is not None:
            page.write(done)
    end_job(done, as_json=as_json, quiet=quiet)
