"""A checkpoint's decoder and tokenizer, without transformers where the files say all that it would add."""

from typing import TYPE_CHECKING

import torch

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.checkpoints.settings import EncoderSettings
from fastvec.decoders.from_files import PlainDecoder, plain_decoder, plain_tokenizer
from fastvec.texts.tokenizer import LoadedTokenizer

if TYPE_CHECKING:  # transformers is imported for the checkpoints that need it
    from fastvec.decoders.packed_transformers import Decoder


def open_decoder(settings: EncoderSettings, dtype: torch.dtype) -> "Decoder | PlainDecoder":
    checkpoint, device, bidirectional = settings.checkpoint, settings.device, settings.bidirectional
    plain = plain_decoder(
        checkpoint, dtype=dtype, device=device, bidirectional=bidirectional, positions=settings.max_length
    )
    if plain is not None:
        return plain
    from fastvec.decoders.from_transformers import load_model
    from fastvec.decoders.packed_transformers import Decoder

    return Decoder(load_model(checkpoint, dtype=dtype, device=device), bidirectional=bidirectional)


def open_tokenizer(checkpoint: Checkpoint) -> LoadedTokenizer:
    plain = plain_tokenizer(checkpoint)
    if plain is not None:
        return plain
    from fastvec.decoders.from_transformers import load_tokenizer

    return load_tokenizer(checkpoint)
