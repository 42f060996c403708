"""Compares encoding with and without 8-bit quantization, alternating in one process: speed and vector agreement.

    PYTHONPATH=.:kernels python -m benchmarks.quantized corpus.parquet [--model MODEL | --shape 25M] [--mix short]

Only encoding is timed. A model whose vectors change too much for `fastvec embed` is measured too; the report says that
`fastvec embed` refuses it.
"""

import statistics
import tempfile
import time
from pathlib import Path

import click
import torch

from benchmarks.engines.models import MIXES, MODEL_SHAPES, read_mix, save_random_model
from fastvec import Encoder
from fastvec.decoders.agreement import Agreement
from fastvec.errors import ModelError

COMPARED = 1000  # texts whose vectors are compared, and whose nearest neighbours are searched among each other


@click.command()
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--column", default="text", show_default=True)
@click.option("--model", help="[default: bundled]")
@click.option(
    "--shape", type=click.Choice(list(MODEL_SHAPES)), help="Use random weights of this shape instead of --model."
)
@click.option("--mix", type=click.Choice(list(MIXES)), default="short", show_default=True)
@click.option("--rows", type=int, help="[default: 300, or 20,000 on a GPU, to fill it]")
@click.option("--rounds", default=5, show_default=True)
def main(
    corpus: Path, column: str, model: str | None, shape: str | None, mix: str, rows: int | None, rounds: int
) -> None:
    """Print the speed-up (median, smallest and largest over rounds) and the agreement of the vectors."""
    quantize = "fp8" if torch.cuda.is_available() else "int8"
    texts = read_mix(corpus, column, mix, rows, at_most=20_000 if torch.cuda.is_available() else 300)
    with tempfile.TemporaryDirectory() as folder:
        if shape is not None:
            limit = MIXES[mix][0]
            model = str(save_random_model(Path(folder, "model"), MODEL_SHAPES[shape], max_length=limit))
        encoders = [Encoder.from_pretrained(model), Encoder.from_pretrained(model, quantize=quantize)]
    # skip the encoder's own comparison, which could refuse the model before it is timed
    encoders[1]._forward.drop_unquantized()
    expected, found = (encoder.encode(texts) for encoder in encoders)
    ratios = []
    for _ in range(rounds):
        seconds = []
        for encoder in encoders:
            started = time.perf_counter()
            encoder.encode(texts)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1])
    settings = encoders[1].settings
    click.echo(f"{settings.arithmetic}: {statistics.median(ratios):.2f}× ({min(ratios):.2f} to {max(ratios):.2f})")
    agreement = Agreement.of(expected[:COMPARED], found[:COMPARED])
    click.echo(f"{agreement}")
    try:
        agreement.require(quantize, settings.dtype)
    except ModelError as refusal:
        click.echo(f"fastvec embed refuses it: {refusal}")


if __name__ == "__main__":
    main()
