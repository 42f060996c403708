"""Plans an adaptation before a model is loaded: its recipe, data, checkpoint and fingerprint."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyarrow import types

from fastvec.checkpoints.model_files import read_json
from fastvec.corpus.columns import is_string
from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import ChunkLimits, Corpus
from fastvec.distributed.ranks import number_of_ranks, own_rank
from fastvec.errors import InputError, ModelError, UsageError
from fastvec.settings import EncoderSettings, resolve_settings
from fastvec.training.recipe import Recipe, resolve_recipe
from fastvec.training.scored_pairs import ScoredPairs, read_scored_pairs

logger = logging.getLogger(__name__)

EVALUATIONS = 10  # during a run, unless eval_every is given
SAVE_EVERY = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptPlan:
    """One job. A contrastive job has a corpus per data argument, and draws each batch from one; others have one."""

    recipe: Recipe
    settings: EncoderSettings
    corpora: tuple[Corpus, ...]
    output: Path
    pairs: ScoredPairs | None
    eval_every: int
    save_every: int
    merge: bool
    fsdp: bool  # split the model over the ranks
    rank: int  # of this process, below `ranks`
    ranks: int
    max_length: int  # of the encoder that is saved: the base's, if that is longer and no other was asked for
    vector_width: int | None = None  # of the teacher's vectors

    @property
    def global_batch_size(self) -> int:
        """The examples of a step, over all ranks."""
        return self.recipe.batch_size * self.ranks

    @property
    def prompts(self) -> tuple[tuple[str | None, str | None], tuple[str | None, str | None]]:
        """An instruction, or the name of a prompt: what precedes queries, or all texts, and what precedes passages.

        Pairs are encoded as the trained model encodes queries and documents.
        """
        given = self.recipe.instruction
        if self.recipe.objective != "contrastive":
            return (given, None), (given, None)
        query = self.settings.prompt_of("query") if given is None else (given, None)
        return query, self.settings.prompt_of("document")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The values that identify the job; the evaluation and save intervals are not among them.

        Nor is how the job is spread over processes: a step depends only on the examples of all of them.
        """
        recipe = self.recipe.to_json()
        recipe.pop("grad_cache")  # changes memory, not the gradient
        recipe.pop("batch_size")
        if recipe["objective"] == "distil":  # a run of a version without the neighbor term has no such key
            recipe["loss"] = "cosine, similarities, neighbors; half of the batches by topic"
        if recipe["objective"] == "contrastive":
            recipe["prompts"] = [self.settings.prefix(*prompt) for prompt in self.prompts]
        return {
            **recipe,
            **self.settings.fingerprint(self.recipe.instruction, None),
            "data": [[[file.uri, file.size, file.version] for file in corpus.files] for corpus in self.corpora],
            "column": self.corpora[0].columns[0],
            "batch_size_of_all_processes": self.global_batch_size,
            "merge": self.merge,
        }


def plan_adapt(
    *,
    objective: str,
    model: str | Path | None,
    data: Sequence[str | Path],
    output: Path,
    adapters: Sequence[str | Path],
    revision: str | None,
    bidirectional: bool | None = None,
    eos: bool | None = None,
    column: str | None,
    device: str,
    dtype: str,
    eval_pairs: Path | None,
    eval_every: int | None,
    save_every: int | None,
    merge: bool,
    fsdp: bool = False,
    **options: Any,
) -> AdaptPlan:
    """Open and check every input and resolve the options. Raises FastvecError before anything is written."""
    recipe = resolve_recipe(objective, **options)
    _check(recipe, data=data, column=column, adapters=adapters, dtype=dtype, merge=merge)
    _check_batch(recipe)
    if recipe.objective == "mntp" and bidirectional is False:
        raise UsageError("--objective mntp trains bidirectional attention: omit --causal")
    _check_intervals({"eval-every": eval_every, "save-every": save_every})
    pairs = None if eval_pairs is None else read_scored_pairs(eval_pairs)
    settings = resolve_settings(
        model,
        adapters=adapters,
        revision=revision,
        device=device,
        dtype=dtype,
        pooling=recipe.pooling,
        bidirectional=True if objective == "mntp" else bidirectional,
        eos=eos,
    )
    _check_fsdp(fsdp, recipe, settings)
    asked = options.get("max_length") is not None
    settings = _for_training(settings, recipe, asked=asked)
    corpora = _open_data(recipe, data, column)
    _warn(recipe)
    width = _vector_width(corpora[0], recipe.vectors) if objective == "distil" else None
    _check_dense(settings, width)
    return AdaptPlan(
        recipe=replace(recipe, max_length=settings.max_length),
        settings=settings,
        corpora=corpora,
        output=Path(os.path.realpath(output)) if output.is_symlink() else output,  # else the link would be replaced
        max_length=settings.max_length if asked else max(settings.max_length, settings.checkpoint.max_length),
        pairs=pairs,
        eval_every=eval_every or max(1, recipe.steps // EVALUATIONS),
        save_every=save_every or min(SAVE_EVERY, recipe.steps),
        merge=merge,
        fsdp=fsdp,
        rank=own_rank(),
        ranks=number_of_ranks(),
        vector_width=width,
    )


def _check_intervals(given: Mapping[str, int | None]) -> None:
    for name, value in given.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value} is out of range: give 1 or more")


def _check(
    recipe: Recipe,
    *,
    data: Sequence[str | Path],
    column: str | None,
    adapters: Sequence[str | Path],
    dtype: str,
    merge: bool,
) -> None:
    """Raise UsageError for options that contradict each other."""
    if recipe.objective == "contrastive" and column is not None:
        raise UsageError(
            "--column does not apply to --objective contrastive: name the columns with --query and --positive"
        )
    if recipe.full and merge:
        raise UsageError("--full and --merge were both given: --full saves whole weights anyway, omit --merge")
    if adapters and not (recipe.full or merge):
        raise UsageError(
            "an adapter can name only one base, and --adapter adds a second: give --merge, or the adapter as --model"
        )
    if dtype == "float16":
        raise UsageError(
            "training in float16 is not supported, because gradients underflow: choose bfloat16 or float32"
        )
    if not data:
        raise UsageError("no data was given: name Parquet, Arrow or text files with --data")


def _check_batch(recipe: Recipe) -> None:
    alone = number_of_ranks() * recipe.batch_size < 2
    if recipe.objective in ("simcse", "contrastive") and not recipe.negatives and alone:
        raise UsageError("--batch-size 1 leaves no other text as a negative: give 2 or more")


def _check_fsdp(fsdp: bool, recipe: Recipe, settings: EncoderSettings) -> None:
    """Raise UsageError if the model is to be split over the ranks, and cannot be."""
    if not fsdp:
        return
    if number_of_ranks() < 2:
        raise UsageError(
            "--fsdp splits the model over several processes, and this is one: start them with torchrun "
            "--nproc-per-node N -m fastvec adapt …, or omit --fsdp"
        )
    # the head and the embeddings would be one tensor in two modules, only one of which is split
    base = settings.checkpoint.base
    if recipe.full and recipe.objective == "mntp" and read_json(base / "config.json").get("tie_word_embeddings", True):
        raise UsageError(
            f"--fsdp cannot train all weights of {settings.checkpoint.name} by mntp, because its embeddings are also "
            "its LM head: omit --full to train an adapter, or omit --fsdp"
        )


def _warn(recipe: Recipe) -> None:
    """Log a warning for each option that is valid but probably not intended."""
    if recipe.lr == 0:
        logger.warning("--lr 0 trains nothing: the weights stay as they are")
    if recipe.query is not None and recipe.query == recipe.positive:
        logger.warning(
            "--query and --positive are both %r: training on pairs of identical texts has no effect", recipe.query
        )


def _for_training(settings: EncoderSettings, recipe: Recipe, *, asked: bool) -> EncoderSettings:
    """Return the settings with the recipe's maximum length and pooled tokens, in a dtype that can be trained.

    A length that exceeds the model's positions raises UsageError if the user `asked` for it; a default is reduced.
    """
    checkpoint = settings.checkpoint
    length, most = recipe.max_length, checkpoint.max_positions
    if most is not None and length > most:
        if asked:
            raise UsageError(f"--max-length {length} is out of range: {checkpoint.name} has {most} positions")
        length = most
    if recipe.pool_tokens is not None:
        checkpoint = replace(checkpoint, pooled_tokens=recipe.pool_tokens)
    # the default on a GPU older than Ampere is float16, in which gradients underflow
    dtype = "float32" if settings.dtype == "float16" else settings.dtype
    return replace(settings, checkpoint=checkpoint, max_length=length, normalize=True, dtype=dtype)


def _check_dense(settings: EncoderSettings, width: int | None) -> None:
    """Raise ModelError for Dense layers, unless distillation can train them: a single linear layer to `width`."""
    checkpoint = settings.checkpoint
    if not checkpoint.dense:
        return
    if width is None:
        raise ModelError(f"{checkpoint.name} has Dense layers after its pooling: only --objective distil trains them")
    if len(checkpoint.dense) > 1 or checkpoint.dense[0].activation != "Identity" or checkpoint.vector_size != width:
        raise ModelError(
            f"{checkpoint.name} has Dense layers to {checkpoint.vector_size} dimensions, and the vectors have {width}: "
            "distil needs one linear layer of the same width, or a model without Dense layers"
        )


def _open_data(recipe: Recipe, data: Sequence[str | Path], column: str | None) -> tuple[Corpus, ...]:
    if recipe.objective == "distil":
        corpora = [open_corpus(data, column=column, keep=[recipe.vectors])]
    elif recipe.positive is None:
        corpora = [open_corpus(data, column=column)]
    else:
        keep = [recipe.positive, *recipe.negatives]
        each = [data] if isinstance(data, str | Path) else data
        corpora = [open_corpus(one, column=recipe.query, keep=keep) for one in each]
    for corpus in corpora:
        uri = corpus.files[0].uri
        if not corpus.rows:
            raise InputError(f"{uri}: no rows to train on; give a file with at least one")
        for field in corpus.kept_schema if recipe.positive is not None else ():
            if not is_string(field.type):
                raise InputError(f"{uri}: column {field.name!r} is {field.type}, not text")
    return tuple(corpora)


def _vector_width(corpus: Corpus, name: str) -> int:
    """Return the width of a column of vectors. Raises InputError for another type, mixed widths, or no vector.

    A list column is judged by its first rows, at most 1024.
    """
    uri, type = corpus.files[0].uri, corpus.kept_schema.field(name).type
    listed = types.is_fixed_size_list(type) or types.is_list(type) or types.is_large_list(type)
    if not listed or not types.is_floating(type.value_type):
        raise InputError(f"{uri}: column {name!r} is {type}: expected vectors, lists of floating-point numbers")
    if types.is_fixed_size_list(type):
        return int(type.list_size)
    first = next(corpus.chunks(ChunkLimits(rows=1024, bytes=4 << 20))).kept.column(name)
    lengths = {len(one) for one in first.drop_null()} - {0}
    if len(lengths) != 1:
        found = f"{min(lengths)} to {max(lengths)} dimensions" if lengths else "no vector"
        raise InputError(f"{uri}: the first rows of column {name!r} have {found}: expected vectors of one width")
    return lengths.pop()
