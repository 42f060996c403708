"""Measure what each stage adds on one decoder: causal, bidirectional, + MNTP, + SimCSE, + distillation.

    python -m recipes.stages decoder -o stages --text wiki.parquet --pairs stsb-dev.csv --vectors teacher.parquet

For every seed, the decoder is adapted by MNTP on the texts, then by SimCSE on their sentences, then by distillation of
a teacher's vectors, if they are given (`recipes.bundled.teacher` makes some). Each stage is measured by Spearman's
correlation on the pairs, and by its accuracy on masked tokens of held-out texts, except for distillation, which has no
LM head. `stages.json` has the values of every seed, `stages.md` a table of their mean ± standard deviation. The same
command resumes: finished stages are not run again.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fastvec import Encoder, adapt
from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import ChunkLimits
from fastvec.decoders.from_transformers import load_model
from fastvec.decoders.packed_transformers import Decoder
from fastvec.settings import resolve_settings
from fastvec.system.libraries import quiet_libraries
from fastvec.texts.from_transformers import tokenizer_from_transformers
from fastvec.texts.tokenizer import TextRecipe, TextTokenizer
from fastvec.training.evaluation import EvaluationPass
from fastvec.training.learner import mask_id
from fastvec.training.objectives.language_head import LanguageHead
from fastvec.training.objectives.losses import MaskRule, mask_tokens
from fastvec.training.objectives.mntp import TokenTask
from fastvec.training.scored_pairs import read_scored_pairs, spearman
from fastvec.training.stream import ExampleStream
from recipes.sentences import sentences_of, within

STAGES = {
    "uni": "causal, as pretrained",
    "bi": "bidirectional, untrained",
    "mntp": "+ MNTP",
    "simcse": "+ SimCSE",
    "distil": "+ distillation",
}
MEASURED = 256  # held-out sequences with masked tokens


@click.command()
@click.argument("decoder")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--text", "texts", multiple=True, required=True, help="Texts for MNTP; SimCSE uses their sentences.")
@click.option("--column", default="text", show_default=True)
@click.option("--pairs", type=click.Path(path_type=Path), required=True)
@click.option("--vectors", multiple=True, help="Texts with a teacher's vectors, for distillation.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--mask-token")
@click.option("--full", is_flag=True, help="Fine-tune all weights instead of an adapter.")
@click.option("--max-length", default=128, show_default=True)
@click.option("--mntp-steps", default=1000, show_default=True)
@click.option("--mntp-lr", default=5e-5, show_default=True)
@click.option("--simcse-steps", default=1000, show_default=True)
@click.option("--simcse-lr", default=3e-5, show_default=True)
@click.option("--temperature", default=0.05, show_default=True, help="Temperature of SimCSE.")
@click.option("--distil-steps", default=1000, show_default=True)
@click.option("--distil-lr", default=1e-3, show_default=True)
def main(decoder: str, output: Path, seeds: int, **options: Any) -> None:
    """Run and measure every stage on DECODER for every seed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output.mkdir(parents=True, exist_ok=True)
    sentences = output / "sentences.parquet"
    if not sentences.exists():
        write_sentences(options["texts"], options["column"], sentences)
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for stage, folder in run_stages(decoder, output, sentences, seed, options):
            found = {"spearman": similarity_of(folder, stage != "uni", options["pairs"])}
            if stage != "distil":
                found |= measure(folder, stage != "uni", seed, options)
            rows.append({"stage": stage, "seed": seed, **found})
            print(rows[-1], flush=True)
            (output / "stages.json").write_text(json.dumps(rows, indent=1) + "\n")
    (output / "stages.md").write_text(table(rows))
    print(table(rows))


def run_stages(
    decoder: str, output: Path, sentences: Path, seed: int, options: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """Run the stages of one seed; yield the name of each and the folder of its model."""
    yield "uni", decoder
    yield "bi", decoder

    def adapted(objective: str, model: str | Path, data: Sequence[str | Path], **how: Any) -> str:
        folder = output / f"{objective}-{seed}"
        adapt(
            objective=objective,
            model=model,
            data=data,
            output=folder,
            steps=options[f"{objective}_steps"],
            lr=options[f"{objective}_lr"],
            seed=seed,
            full=options["full"] or None,
            max_length=options["max_length"],
            **how,
        )
        return str(folder)

    pairs = options["pairs"]
    mntp = adapted("mntp", decoder, options["texts"], column=options["column"], mask_token=options["mask_token"])
    yield "mntp", mntp
    simcse = adapted("simcse", mntp, [sentences], temperature=options["temperature"], eval_pairs=pairs)
    yield "simcse", simcse
    if options["vectors"]:
        yield "distil", adapted("distil", simcse, options["vectors"], eval_pairs=pairs)


def similarity_of(model: str, bidirectional: bool, pairs: Path) -> float:
    """Return Spearman's correlation between the pairs' cosine similarities and their scores."""
    scored = read_scored_pairs(pairs)
    encoder = Encoder.from_pretrained(model, bidirectional=bidirectional, dtype="float32")
    first, second = encoder.encode(scored.first), encoder.encode(scored.second)
    return spearman((first * second).sum(axis=1), scored.scores)


def measure(model: str, bidirectional: bool, seed: int, options: dict[str, Any]) -> dict[str, float]:
    """Measure accuracy and loss on masked tokens of the rows this seed's MNTP held out."""
    settings = resolve_settings(model, bidirectional=bidirectional, dtype="float32")
    with quiet_libraries(), torch.inference_mode():
        tokenizer = tokenizer_from_transformers(settings.checkpoint)
        causal = load_model(settings.checkpoint, dtype=torch.float32, device=settings.device, headed=True)
        inner: Any = causal.base_model
        look = EvaluationPass(
            model=Decoder(inner, bidirectional=bidirectional).model, device=torch.device(settings.device)
        )
        rule = MaskRule(
            mask_id=mask_id(tokenizer, options["mask_token"], int(causal.config.vocab_size)),
            vocabulary=len(tokenizer),
            special_ids=frozenset(tokenizer.all_special_ids),
            style="all",
        )
        task = TokenTask(
            TextTokenizer(tokenizer, TextRecipe(max_length=1 << 30)),
            LanguageHead(causal),
            lambda ids, random: mask_tokens(ids, rule, random),
            max_length=options["max_length"],
            at_once=None,
        )
        corpus = open_corpus(options["texts"], column=options["column"])
        held_out = ExampleStream(corpus, task.examples_of, seed=seed, hold_out=0.01).held_out(MEASURED)
        found = task.evaluate(held_out, look, size=16)
    return {"accuracy": found["accuracy"], "masked_loss": found["loss"]}


def write_sentences(texts: tuple[str, ...], column: str, path: Path) -> None:
    """Write the sentences of 30 to 220 characters, one row group for each chunk of texts."""
    schema = pa.schema([("sentence", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in open_corpus(texts, column=column).chunks(ChunkLimits(rows=512, bytes=4 << 20)):
            lines = (line for text in chunk.texts.drop_null().to_pylist() for line in text.splitlines())
            found = [sentence for line in lines for sentence in sentences_of(line) if within(sentence)]
            writer.write_table(pa.table({"sentence": found}, schema))


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with one row for each stage: mean ± standard deviation over seeds."""
    lines = ["| stage | accuracy on masked tokens, % | Spearman × 100 |", "|---|---|---|"]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        cells = [_spread([100 * row[name] for row in own if name in row]) for name in ("accuracy", "spearman")]
        lines.append(f"| {STAGES[stage]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.2f}"


if __name__ == "__main__":
    main()
