"""Make the model folder that the package ships, without files and settings needed only for training.

    python -m recipes.bundled.finish distilled --texts texts.parquet -o folder --card card.md

The Dense layer, whose output is wider than the model, is replaced by the square one with the same cosines whose outputs
are the principal components of the texts' vectors, so that `--dims` keeps as much as it can. Matrices are stored in 8
bits, which fastvec, transformers and sentence-transformers widen when they read them.
"""

import json
import shutil
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastvec import Encoder
from fastvec.checkpoints.checkpoint import DENSE_FOLDER, RECORD
from fastvec.checkpoints.model_files import read_json
from fastvec.training.saved_folder import save_dense

FILES = (
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
WEIGHTS = "model.safetensors"
MATRICES = torch.float8_e4m3fn
MOST_BYTES = 12_000_000
TEXTS = 20_000  # whose vectors give the principal components


@click.command()
@click.argument("adapted", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--texts", type=click.Path(exists=True, path_type=Path), required=True, help="Texts in random order.")
@click.option("--card", type=click.Path(exists=True, path_type=Path), required=True)
def main(adapted: Path, output: Path, texts: Path, card: Path) -> None:
    """Make the folder from ADAPTED and CARD.

    The record keeps only how to run the model, and the tokenizer is written as compact JSON.
    """
    for name in FILES:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(adapted / name, output / name)
    (head,) = load_file(adapted / DENSE_FOLDER / WEIGHTS).values()
    weights = load_file(adapted / WEIGHTS)
    small = {name: weight.to(MATRICES if weight.ndim == 2 else torch.float16) for name, weight in weights.items()}
    save_file(small, output / WEIGHTS, metadata={"format": "pt"})
    some = next(pq.ParquetFile(texts).iter_batches(TEXTS, columns=["text"]))["text"]
    vectors = Encoder.from_pretrained(adapted, dtype="float32", device="cpu").encode(some)
    save_dense(output / DENSE_FOLDER, linear(principal(head, vectors)))
    config = read_json(adapted / "config.json") | {"dtype": "float32"}  # what other libraries compute in
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    rules = {
        key: value for key, value in read_json(adapted / RECORD).items() if key in ("format", "version", "encoder")
    }
    (output / RECORD).write_text(json.dumps(rules, indent=2) + "\n")
    tokenizer = read_json(adapted / "tokenizer.json")
    compact = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (output / "tokenizer.json").write_text(compact, encoding="utf-8")
    shutil.copyfile(card, output / "README.md")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    click.echo(f"{output}: {size:,} bytes")
    if size > MOST_BYTES:
        raise click.ClickException(f"the model is too large: {size:,} bytes; the package allows at most {MOST_BYTES:,}")


def principal(weight: torch.Tensor, vectors: npt.NDArray[np.float32]) -> torch.Tensor:
    """Return a matrix [H, H] whose outputs are the principal components of those of `weight` [D, H], largest first.

    `vectors` [n, D] are outputs of `weight`, at most H of whose components are not 0: inner products stay the same.
    """
    wide = vectors.astype(np.float64)
    axes = np.linalg.eigh(wide.T @ wide).eigenvectors[:, ::-1][:, : weight.shape[1]]
    return torch.from_numpy(axes.T.astype(np.float32).copy()) @ weight


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


if __name__ == "__main__":
    main()
