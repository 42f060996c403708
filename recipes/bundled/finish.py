"""Make the model folder that the package ships, without files and settings needed only for training.

    python -m recipes.bundled.finish distilled -o folder --card card.md

The Dense layer, whose output is wider than the model, is replaced by the square one with the same cosines. Matrices are
stored in 8 bits, which fastvec, transformers and sentence-transformers widen when they read them.
"""

import json
import shutil
from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file
from torch import nn

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


@click.command()
@click.argument("adapted", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--card", type=click.Path(exists=True, path_type=Path), required=True)
def main(adapted: Path, output: Path, card: Path) -> None:
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
    save_dense(output / DENSE_FOLDER, linear(square(head)))
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


def square(weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix [H, H] whose outputs have the same inner products as those of `weight` [D, H].

    It is the square root of weight.T @ weight: among all such matrices, the one that rotates vectors least.
    """
    _, sizes, axes = torch.linalg.svd(weight, full_matrices=False)
    root: torch.Tensor = axes.T @ (sizes[:, None] * axes)
    return root


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


if __name__ == "__main__":
    main()
