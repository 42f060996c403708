"""Train the bundled model's tokenizer: lower-cased whole words, each one token wherever it occurs, and pieces.

    python -m recipes.bundled.tokenizer texts.parquet -o tokenizer --vocabulary 28672

8,192 entries are the bytes and merges of a byte-level BPE, for words outside of the vocabulary; the rest is the most
frequent words. A BPE of the same size spends as many entries on intermediate stems. It is trained on texts without
names and numbers, which would take most of a small vocabulary. It adds no special tokens, so that every tool pools the
same tokens.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pyarrow.parquet as pq
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from recipes.bundled.texts import NAME

SPECIAL = ["<pad>", "<mask>"]
LONGEST = 24  # bytes of a token
BREAKS = Regex(r" ?[\-–—/()\[\]\"“”]")  # a word after one of these is the same token as after a space


@click.command()
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--vocabulary", default=28_672, show_default=True)
@click.option("--pieces", default=8_192, show_default=True, help="Entries of the byte-level BPE, out of --vocabulary.")
def main(texts: Path, output: Path, vocabulary: int, pieces: int) -> None:
    """Train the tokenizer on TEXTS, a Parquet file with a column `text`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    split = [pre_tokenizers.Split(BREAKS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.train_from_iterator(
        nameless(texts),
        trainers.BpeTrainer(
            vocab_size=pieces,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=LONGEST,
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=with_words(tokenizer, texts, vocabulary),
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=512,
    ).save_pretrained(output)


def nameless(texts: Path) -> Iterator[str]:
    """Yield the texts without a name or a number."""
    for batch in pq.ParquetFile(texts).iter_batches(columns=["text"]):
        yield from (text for text in batch["text"].to_pylist() if NAME.search(text) is None)


def with_words(tokenizer: Tokenizer, texts: Path, vocabulary: int) -> Tokenizer:
    """Add the most frequent words of `texts` to the vocabulary, up to `vocabulary` entries in total."""
    counts: Counter[str] = Counter()
    for text in nameless(texts):
        words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        counts.update(word for word, _ in words)
    document = json.loads(tokenizer.to_str())
    entries = document["model"]["vocab"]
    for word, _ in counts.most_common():
        if len(entries) >= vocabulary:
            break
        if len(word) <= LONGEST:
            entries.setdefault(word, len(entries))
    document["model"]["ignore_merges"] = True  # a word in the vocabulary is one token, whatever its pieces merge to
    return Tokenizer.from_str(json.dumps(document))


if __name__ == "__main__":
    main()
