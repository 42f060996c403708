"""Pretrain a small causal decoder from scratch: a tokenizer, a Llama with random weights, next-token prediction.

    python -m recipes.pretrain wiki.parquet -o decoder --steps 3000

Use it to try `fastvec adapt` without a pretrained decoder: it takes minutes on a GPU, hours on a laptop. The same
command resumes. transformers can load the output folder.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import ChunkLimits, Corpus
from fastvec.decoders.packed_transformers import Decoder
from fastvec.settings import resolve_dtype
from fastvec.texts.tokenizer import TextRecipe, TextTokenizer
from fastvec.training.objectives.language_head import LanguageHead
from fastvec.training.objectives.losses import next_tokens
from fastvec.training.objectives.mntp import TokenTask
from fastvec.training.objectives.noise import NoiseSource
from fastvec.training.stream import ExampleStream
from fastvec.training.trainer import Batches, PackedTrainer

logger = logging.getLogger("recipes.pretrain")
SPECIAL = ["<s>", "</s>", "<mask>"]
TOKENIZER_BYTES = 64 << 20


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--column")
@click.option("--vocabulary", default=8192, show_default=True)
@click.option("--width", default=256, show_default=True)
@click.option("--layers", default=4, show_default=True)
@click.option("--max-length", default=256, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--steps", default=3000, show_default=True)
@click.option("--lr", default=1e-3, show_default=True)
@click.option("--save-every", default=100, show_default=True)
@click.option("--seed", default=42, show_default=True)
def main(
    data: tuple[str, ...],
    output: Path,
    column: str | None,
    vocabulary: int,
    width: int,
    layers: int,
    seed: int,
    **settings: Any,
) -> None:
    """Train a tokenizer and a decoder on the text column of Parquet or Arrow files."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    disable_progress_bar()
    if (output / "model.safetensors").is_file() and not (output / "run").exists():
        logger.info("%s is already finished", output)
        return
    corpus = open_corpus(data, column=column)
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "tokenizer.json").is_file():
        train_tokenizer(corpus, vocabulary).save_pretrained(output)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(output)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(shape(len(tokenizer), width, layers))
    logger.info("%.1f million parameters", sum(parameter.numel() for parameter in model.parameters()) / 1e6)
    train(model, tokenizer, corpus, output, seed=seed, **settings)
    model.config.is_causal = True
    model.save_pretrained(output)
    shutil.rmtree(output / "run")


def train_tokenizer(corpus: Corpus, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that puts a BOS before every text, on 64 MiB of text from row groups in random order."""

    def texts() -> Any:
        size = 0
        groups = corpus.groups
        for first, end in (groups[i] for i in np.random.default_rng(0).permutation(len(groups))):
            for chunk in corpus.chunks(ChunkLimits(rows=1024, bytes=4 << 20), first_row=first, end_row=end):
                yield chunk.texts.drop_null().to_pylist()
                size += chunk.texts.nbytes
                if size > TOKENIZER_BYTES:
                    return

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", mask_token="<mask>", model_max_length=512
    )


def shape(vocabulary: int, width: int, layers: int) -> LlamaConfig:
    """Return a Llama configuration whose LM head is tied to the input embeddings."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    output: Path,
    *,
    max_length: int,
    batch_size: int,
    steps: int,
    lr: float,
    save_every: int,
    seed: int,
) -> None:
    """Train next-token prediction with AdamW and a cosine schedule, in bfloat16 where the processor is fast in it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    decoder = Decoder(model.model, bidirectional=False)
    texts = TextTokenizer(tokenizer, TextRecipe(max_length=1 << 30))
    task = TokenTask(texts, LanguageHead(model), _all_next, max_length=max_length, at_once=None)
    stream = ExampleStream(corpus, task.examples_of, seed=seed, hold_out=0.01)
    batches = Batches([stream], size=batch_size, rank=0, ranks=1, seed=seed)
    arguments = TrainingArguments(
        output_dir=str(output / "run"),
        max_steps=steps,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        weight_decay=0.1,
        adam_beta2=0.95,
        bf16=resolve_dtype(device) == "bfloat16",
        use_cpu=device == "cpu",
        seed=seed,
        save_steps=save_every,
        save_total_limit=2,
        logging_steps=20,
        logging_nan_inf_filter=False,
        ignore_data_skip=True,
        disable_tqdm=True,
        report_to=[],
    )
    trainer = PackedTrainer(model=decoder.model, args=arguments, task=task, batches=batches, noise=NoiseSource())
    trainer.resume(output / "run")


def _all_next(ids: Any, random: np.random.Generator) -> Any:
    return next_tokens(ids)


if __name__ == "__main__":
    main()
