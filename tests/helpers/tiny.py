"""Tiny decoders with random weights and a real tokenizer, made on the fly for the tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SENTENCES = [
    "A whale is a mammal that lives in the sea.",
    "The train from the harbour to the old town leaves every hour.",
    "Bread is baked from flour, water, salt and yeast.",
    "Zürich, naïve café — déjà vu: 日本語 ok?",
    "She counted 1, 2, 3, 4, 5 stars and 1024 more.",
]
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}


def save_tokenizer(
    folder: Path, texts: Sequence[str] = SENTENCES, *, bos: bool = True, eos: bool = False, vocab_size: int = 512
) -> int:
    """Train a byte-level BPE of at most `vocab_size` tokens, save it for transformers, and return its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    template = ("<s> " if bos else "") + "$A" + (" </s>" if eos else "")
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", mask_token="<mask>")
    fast.save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


def save_decoder(
    folder: Path,
    model_type: str,
    *,
    texts: Sequence[str] = SENTENCES,
    vocab_size: int = 512,
    bos: bool = True,
    eos: bool = False,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Save a random float32 decoder of `model_type` with a tokenizer into `folder` and return it."""
    vocab_size = save_tokenizer(folder, texts, bos=bos, eos=eos, vocab_size=vocab_size)
    config = AutoConfig.for_model(
        model_type, **{**TINY, "vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 1, **overrides}
    )
    config.pad_token_id = None
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # with transformers' std of 0.02, attention is almost uniform: a wrong mask would change states by less than 1e-5
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    return folder
