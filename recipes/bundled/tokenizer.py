"""The bundled model's tokenizer: a byte-level BPE of lower-cased text, in which a word is the same wherever it stands.

    python -m recipes.bundled.tokenizer texts.parquet -o tokenizer --vocabulary 16384

It learns from texts without names and numbers, which would take most of a small vocabulary. There are no tokens around
a text, so that every tool pools the same tokens of it.
"""

from pathlib import Path

import click
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from recipes.bundled.texts import NAME

SPECIAL = ["<pad>", "<mask>"]
LONGEST = 16  # characters of a token


@click.command()
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--vocabulary", default=16_384, show_default=True)
def main(texts: Path, output: Path, vocabulary: int) -> None:
    """Train it on TEXTS, a Parquet file with a column `text`."""
    file = pq.ParquetFile(texts)
    groups = (file.read_row_group(group)["text"].to_pylist() for group in range(file.num_row_groups))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.train_from_iterator(
        ([text for text in group if NAME.search(text) is None] for group in groups),
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=LONGEST,
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", mask_token="<mask>", model_max_length=512
    ).save_pretrained(output)


if __name__ == "__main__":
    main()
