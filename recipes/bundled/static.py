"""Make the start of the bundled model: a Llama whose layers add almost nothing, so a vector is its tokens' mean.

    python -m recipes.bundled.static vectors/ -o static --tokenizer tokenizer --teacher all-MiniLM-L6-v2

The initial vector of a token is the teacher's vector of the token alone, weighted by rarity (Arora et al., 2017),
reduced by PCA, and extended by one constant dimension. The final RMSNorm divides by a token's norm, so the larger the
constant's share of the norm, the less the token weighs. Then the token vectors and a linear map to the teacher's width
are trained with the loss of `fastvec adapt --objective distil`, which takes minutes, as there are no layers to run.
transformers can load the folder. Its layers add a hundredth of a token, so further training starts from the static
model.

Shapes: V vocabulary, H the model's width, D the teacher's, T tokens of n texts.
"""

import json
import logging
from pathlib import Path
from typing import Any

import click
import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from fastvec.checkpoints.checkpoint import DENSE_FOLDER, RECORD, RECORD_FORMAT
from fastvec.training.objectives.distillation import FIT_TEXTS, least_squares
from fastvec.training.objectives.losses import distillation
from fastvec.training.saved_folder import save_dense
from recipes.bundled.bags import Texts, read
from recipes.pretrain import shape

logger = logging.getLogger("recipes.bundled.static")
RARE = 1e-3  # a token with this share of all occurrences has weight 1/2
CONSTANT = 3.0  # the constant dimension, relative to the mean norm of the tokens
QUIET = 0.1  # factor of the layers' output projections
BETAS = (0.9, 0.95)  # Adam's: with the usual 0.999, each text that contains a rare token moves it too far


@click.command()
@click.argument("vectors", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--tokenizer", "tokenizer_path", required=True)
@click.option("--teacher", required=True, help="The sentence-transformers model that VECTORS came from.")
@click.option("--width", default=256, show_default=True)
@click.option("--layers", default=1, show_default=True)
@click.option("--epochs", default=3, show_default=True)
@click.option("--batch-size", default=1024, show_default=True)
@click.option("--lr", default=3e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    vectors: Path,
    output: Path,
    tokenizer_path: str,
    teacher: str,
    width: int,
    layers: int,
    **options: Any,
) -> None:
    """Train static token vectors on VECTORS, a folder of Parquet files with columns `text` and `embedding`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_path)
    texts, targets = read(vectors, tokenizer)
    logger.info("%s texts, %s tokens", f"{len(texts.lengths):,}", f"{len(texts.ids):,}")
    torch.manual_seed(options["seed"])
    tokens = start(tokenizer, teacher, texts.ids, width)
    dense = learn(tokens, texts, targets, **options)
    torch.manual_seed(options["seed"])
    model = llama(tokens.detach(), width, layers, tokenizer)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    save_dense(output / DENSE_FOLDER, dense)
    rules = {"pooling": "mean", "pooled_tokens": "all", "max_length": 512, "dense": True}
    (output / RECORD).write_text(json.dumps({"format": RECORD_FORMAT, "encoder": rules}, indent=2) + "\n")


def start(tokenizer: PreTrainedTokenizerFast, teacher: str, ids: torch.Tensor, width: int) -> torch.Tensor:
    """Return the initial token vectors [V, H], the last dimension constant, with a root mean square of 1."""
    names = [str(tokenizer.decode([token])).strip() or " " for token in range(len(tokenizer))]
    encoded = SentenceTransformer(teacher).encode(names, batch_size=256, convert_to_tensor=True).float().cpu()
    counts = torch.bincount(ids, minlength=len(names)).double()
    weights = (RARE / (RARE + counts / counts.sum())).float()
    weighted = (encoded - encoded.mean(dim=0)) * weights[:, None]
    basis = torch.linalg.svd(weighted, full_matrices=False).Vh[: width - 1]
    reduced = weighted @ basis.T
    constant = CONSTANT * reduced.norm(dim=1).mean().expand(len(names), 1)
    tokens = torch.cat([reduced, constant], dim=1)
    return nn.Parameter(tokens / tokens.square().mean().sqrt())


def learn(
    tokens: torch.Tensor,
    texts: Texts,
    targets: torch.Tensor,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> nn.Linear:
    """Train `tokens` in place; return the linear map to the teacher's width, which is trained with them."""
    count = len(texts.lengths)
    random = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(count, generator=random) for _ in range(epochs)])
    first = order[:FIT_TEXTS]
    dense = least_squares(texts.means(tokens, first).detach(), targets[first])
    optimizer = torch.optim.Adam([tokens, dense.weight], lr=lr, betas=BETAS)
    steps = epochs * (count // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        rows = order[step * batch_size : (step + 1) * batch_size]
        vectors, wanted = dense(texts.means(tokens, rows)), targets[rows].float()
        loss = distillation(vectors, wanted, vectors, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            logger.info("step %d of %d, loss %.4f", step + 1, steps, loss.item())
    return dense


def llama(tokens: torch.Tensor, width: int, layers: int, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a Llama with these token embeddings, whose layers add almost nothing to them."""
    config = shape(len(tokens), width, layers)
    config.intermediate_size = width  # a layer improves the mean of tokens little, and is most of the model's cost
    config.pad_token_id, config.bos_token_id, config.eos_token_id = tokenizer.pad_token_id, None, None
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(tokens)
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[:, -1] = 0  # else attention would add the constant many times over
            layer.self_attn.o_proj.weight.mul_(QUIET)
            layer.mlp.down_proj.weight.mul_(QUIET)
    model.config.is_causal = True
    return model


if __name__ == "__main__":
    main()
