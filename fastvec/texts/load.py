"""Loads a checkpoint's tokenizer, without importing transformers if the checkpoint's files fully define it."""

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.texts.from_files import tokenizer_from_files
from fastvec.texts.limits import translated_panics
from fastvec.texts.tokenizer import LoadedTokenizer


def load_tokenizer(checkpoint: Checkpoint) -> LoadedTokenizer:
    """Load the tokenizer of `checkpoint`; raises ModelError if its files define none that can be loaded."""
    with translated_panics():
        tokenizer = tokenizer_from_files(checkpoint)
        if tokenizer is not None:
            return tokenizer
        from fastvec.texts.from_transformers import tokenizer_from_transformers

        return tokenizer_from_transformers(checkpoint)
