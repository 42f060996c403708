"""A checkpoint's tokenizer, without transformers where tokenizer.json says all that transformers would add."""

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.texts.from_files import tokenizer_from_files
from fastvec.texts.tokenizer import LoadedTokenizer


def load_tokenizer(checkpoint: Checkpoint) -> LoadedTokenizer:
    """Raises ModelError where the checkpoint's files make no tokenizer."""
    tokenizer = tokenizer_from_files(checkpoint)
    if tokenizer is not None:
        return tokenizer
    from fastvec.texts.from_transformers import tokenizer_from_transformers

    return tokenizer_from_transformers(checkpoint)
