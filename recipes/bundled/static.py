"""Make the start of the bundled model: a Llama whose layers add almost nothing, so a vector is its tokens' mean.

    python -m recipes.bundled.static vectors/ -o static --tokenizer tokenizer --teacher MODEL --pairs pairs.parquet

A token has a vector and a weight. Its initial vector is the teacher's of the token alone, reduced by a PCA in which
frequent tokens count less (Arora et al., 2017); its initial weight is the root of what it counts there. Vectors,
weights and a linear map to the teacher's width are trained with the cosine and similarity terms of `fastvec adapt
--objective distil`, and with InfoNCE of pairs of queries and passages. That takes minutes, as there are no layers to
run.

The final RMSNorm divides by a token's norm, so the model's tokens have one dimension more, which the map ignores, and
which makes their norms equal: the norm's output then has the weight. transformers can load the folder. Its layers add
little to a token, so further training starts from the static model.

Shapes: V vocabulary, H the model's width, W = H - 1, D the teacher's width, n texts.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import click
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fastvec.checkpoints.checkpoint import DENSE_FOLDER, RECORD, RECORD_FORMAT
from fastvec.training.objectives.distillation import FIT_TEXTS, least_squares
from fastvec.training.objectives.losses import distillation
from fastvec.training.saved_folder import save_dense
from recipes.bundled.bags import Texts, read
from recipes.bundled.finish import linear

logger = logging.getLogger("recipes.bundled.static")
RARE = 1e-3  # a token with this share of all occurrences has an initial weight of 1/2 in the PCA
QUIET = 0.1  # factor of the layers' output projections
SCALE = 20.0  # of cosines in InfoNCE
BETAS = (0.9, 0.95)  # Adam's: with the usual 0.999, each text that contains a rare token moves it too far
LONGEST = 0.999  # quantile of the tokens' norms above which a token is shortened


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    epochs: int
    batch_size: int
    lr: float
    pair_weight: float
    pair_batch: int
    seed: int


@click.command()
@click.argument("vectors", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--tokenizer", "tokenizer_path", required=True)
@click.option("--teacher", required=True, help="The sentence-transformers model that VECTORS came from.")
@click.option("--pairs", type=click.Path(exists=True, path_type=Path), help="Parquet file of queries and passages.")
@click.option("--width", default=256, show_default=True)
@click.option("--layers", default=2, show_default=True)
@click.option("--heads", default=4, show_default=True, help="Of 32 dimensions.")
@click.option("--mlp", default=128, show_default=True, help="Width of the layers' MLPs.")
@click.option("--epochs", default=4, show_default=True)
@click.option("--batch-size", default=1024, show_default=True)
@click.option("--lr", default=3e-3, show_default=True)
@click.option("--pair-weight", default=0.05, show_default=True, help="Of InfoNCE, relative to distillation.")
@click.option("--pair-batch", default=512, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    vectors: Path,
    output: Path,
    tokenizer_path: str,
    teacher: str,
    pairs: Path | None,
    width: int,
    layers: int,
    heads: int,
    mlp: int,
    **options: float,
) -> None:
    """Train static token vectors on VECTORS, a folder of Parquet files with columns `text` and `embedding`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_path)
    texts, targets = read(vectors, tokenizer)
    logger.info("%s texts, %s tokens", f"{len(texts.lengths):,}", f"{len(texts.ids):,}")
    training = Training(**options)  # type: ignore[arg-type]
    table = start(tokenizer, teacher, texts.ids, width - 1)
    dense = learn(table, texts, targets, read_pairs(pairs, tokenizer), training)
    torch.manual_seed(training.seed)
    config = shape(tokenizer, width, layers, heads, mlp)
    model = llama(evened(table.weighted()), config)
    model.config.is_causal = True
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    save_dense(output / DENSE_FOLDER, linear(F.pad(dense.weight.detach(), (0, 1))))
    rules = {"pooling": "mean", "pooled_tokens": "all", "max_length": 256, "dense": True}
    (output / RECORD).write_text(json.dumps({"format": RECORD_FORMAT, "encoder": rules}, indent=2) + "\n")


class Table(nn.Module):
    """Token vectors [V, W] and the logarithms of their weights [V]."""

    def __init__(self, vectors: torch.Tensor, logs: torch.Tensor) -> None:
        super().__init__()
        self.vectors, self.logs = nn.Parameter(vectors), nn.Parameter(logs)

    def forward(self, texts: Texts, rows: torch.Tensor) -> torch.Tensor:
        """Return the sums [n, W] of the weighted vectors of the texts in `rows`."""
        ids, starts = texts.bags(rows)
        weights = self.logs.exp().index_select(0, ids)
        return F.embedding_bag(ids, self.vectors, starts, mode="sum", per_sample_weights=weights)

    def weighted(self) -> torch.Tensor:
        return (self.vectors * self.logs.exp()[:, None]).detach()


def start(tokenizer: PreTrainedTokenizerFast, teacher: str, ids: torch.Tensor, width: int) -> Table:
    """Return the initial tokens: vectors of the teacher, reduced, and the root of weights that fall with frequency."""
    names = [str(tokenizer.decode([token])).strip() or " " for token in range(len(tokenizer))]
    encoded = SentenceTransformer(teacher).encode(names, batch_size=256, convert_to_tensor=True).float().cpu()
    counts = torch.bincount(ids, minlength=len(names)).double()
    weights = (RARE / (RARE + counts / counts.sum())).float()
    centered = encoded - encoded.mean(dim=0)
    basis = torch.linalg.svd(centered * weights[:, None], full_matrices=False).Vh[:width]
    return Table(8 * centered @ basis.T, weights.log() / 2)


def read_pairs(path: Path | None, tokenizer: PreTrainedTokenizerFast) -> tuple[Texts, Texts] | None:
    """Return the queries and their passages, without pairs of which one has no token."""
    if path is None:
        return None
    table = pq.read_table(path)
    sides = [Texts.of(table[name].to_pylist(), tokenizer) for name in ("query", "passage")]
    usable = torch.nonzero((sides[0].lengths > 0) & (sides[1].lengths > 0))[:, 0]
    queries, passages = (side.only(usable) for side in sides)
    return queries, passages


def learn(
    table: Table, texts: Texts, targets: torch.Tensor, pairs: tuple[Texts, Texts] | None, training: Training
) -> nn.Linear:
    """Train `table` in place; return the linear map to the teacher's width, which is trained with it."""
    count, size = len(texts.lengths), training.batch_size
    random = torch.Generator().manual_seed(training.seed)
    order = torch.cat([torch.randperm(count, generator=random) for _ in range(training.epochs)])
    first = order[:FIT_TEXTS]
    with torch.no_grad():
        dense = least_squares(F.normalize(table(texts, first), dim=1), targets[first])
    rates = {table.vectors: 2 * training.lr, table.logs: training.lr, dense.weight: training.lr / 4}
    optimizer = torch.optim.Adam([{"params": [weight], "lr": lr} for weight, lr in rates.items()], betas=BETAS)
    steps = training.epochs * (count // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        rows = order[step * size : (step + 1) * size]
        vectors, wanted = dense(F.normalize(table(texts, rows), dim=1)), targets[rows].float()
        loss = distillation(vectors, wanted, vectors, wanted)
        if pairs is not None and training.pair_weight:
            some = torch.randint(len(pairs[0].lengths), (training.pair_batch,), generator=random)
            queries, passages = (F.normalize(dense(table(side, some)), dim=1) for side in pairs)
            loss = loss + training.pair_weight * both_ways(queries, passages)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            logger.info("step %d of %d, loss %.4f", step + 1, steps, loss.item())
    return dense


def both_ways(queries: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    """Return the mean InfoNCE of queries over passages and of passages over queries, unit vectors [n, D]."""
    scores = SCALE * queries @ passages.T
    own = torch.arange(len(scores))
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def evened(tokens: torch.Tensor) -> torch.Tensor:
    """Append a dimension to tokens [V, W] that makes their norms equal, and their root mean squares 1."""
    norms = tokens.norm(dim=1)
    most = torch.quantile(norms, LONGEST)
    shortened = tokens * (most / norms.clamp(min=most))[:, None]
    rest = (most**2 - shortened.square().sum(dim=1)).clamp(min=0).sqrt()
    even = torch.cat([shortened, rest[:, None]], dim=1)
    return even / even.square().mean().sqrt()


def shape(tokenizer: PreTrainedTokenizerFast, width: int, layers: int, heads: int, mlp: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
    )


def llama(tokens: torch.Tensor, config: LlamaConfig) -> LlamaForCausalLM:
    """Return a Llama with these token embeddings [V, H], whose layers add almost nothing to them."""
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(tokens)
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[:, -1] = 0  # else attention would add the last dimension many times over
            layer.self_attn.o_proj.weight.mul_(QUIET)
            layer.mlp.down_proj.weight.mul_(QUIET)
    return model


if __name__ == "__main__":
    main()
