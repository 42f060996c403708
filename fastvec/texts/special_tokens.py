"""Sets the special tokens around every text if a checkpoint's rules differ from its tokenizer.json."""

import logging

from tokenizers import Tokenizer, normalizers, processors

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.errors import ModelError, UsageError
from fastvec.texts.tokenizer import LoadedTokenizer, special_tokens

logger = logging.getLogger(__name__)

Around = tuple[list[int], list[int]]  # ids before and after a text


def apply_rules(checkpoint: Checkpoint, tokenizer: LoadedTokenizer) -> None:
    """Configure `tokenizer` to lower-case texts and add special tokens as `checkpoint` says, whichever loader made it.

    Raises ModelError and UsageError as `set_special_tokens` does.
    """
    backend = tokenizer.backend_tokenizer
    if checkpoint.lower_case:
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    set_special_tokens(checkpoint, tokenizer)


def set_special_tokens(checkpoint: Checkpoint, tokenizer: LoadedTokenizer) -> None:
    """Configure `tokenizer` to add `checkpoint.special_tokens` to a text, and log what that changed in one line.

    The change becomes part of the tokenizer and is saved with it. Raises ModelError if the tokenizer does not name a
    token that a flag requires, and UsageError if the user's choice does not fit the template.
    """
    wanted, backend = checkpoint.special_tokens, tokenizer.backend_tokenizer
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for flag, token in (("add_bos_token", bos), ("add_eos_token", eos)):
        if wanted.stated.get(flag) and token is None:
            raise ModelError(f"{checkpoint.name} needs {flag}: true, but its tokenizer does not define that token")
    own = special_tokens(backend)
    if wanted.asked and not wanted.alone and own[1] and eos not in own[1]:
        ends = backend.id_to_token(own[1][-1])
        raise UsageError(
            f"{checkpoint.name} ends its sequences with {ends!r}, which is not its EOS token {tokenizer.eos_token!r}: "
            "leave --eos and --no-eos out"
        )
    nameless = (wanted.bos and bos is None) or (wanted.eos and eos is None)
    before, after = ([], []) if wanted.alone and not nameless else own
    settled = (_with_or_without(before, bos, wanted.bos, 0), _with_or_without(after, eos, wanted.eos, len(after)))
    if settled != own:
        backend.post_processor = _template(backend, settled)
        stated = ", ".join(f"{flag}: {str(value).lower()}" for flag, value in wanted.stated.items())
        logger.info(
            "%s: sequences are %s, instead of %s as with transformers 5: %s",
            checkpoint.name,
            _shown(backend, settled),
            _shown(backend, own),
            "set by the user" if wanted.asked else stated or "the default of its tokenizer class",
        )
    _warn_of_unsettled(checkpoint, tokenizer, settled)


def _warn_of_unsettled(checkpoint: Checkpoint, tokenizer: LoadedTokenizer, settled: Around) -> None:
    present = {
        "add_bos_token": tokenizer.bos_token_id in settled[0],
        "add_eos_token": tokenizer.eos_token_id in settled[1],
    }
    flags = checkpoint.special_tokens.unsettled
    if unmet := [f"{flag}: {str(value).lower()}" for flag, value in flags.items() if value != present[flag]]:
        logger.warning(
            "%s: sequences are %s as in tokenizer.json, though tokenizer_config.json says %s, which this class of "
            "tokenizer never read%s",
            checkpoint.name,
            _shown(tokenizer.backend_tokenizer, settled),
            ", ".join(unmet),
            "; set --eos or --no-eos" if flags.get("add_eos_token") == (not present["add_eos_token"]) else "",
        )


def _with_or_without(tokens: list[int], token: int | None, wanted: bool | None, place: int) -> list[int]:
    if wanted is None or token is None or wanted == (token in tokens):
        return tokens
    if not wanted:
        return [other for other in tokens if other != token]
    return [*tokens[:place], token, *tokens[place:]]


def _template(backend: Tokenizer, around: Around) -> processors.TemplateProcessing:
    """Build the template. It names tokens by their place, because a token's own name may contain template syntax."""
    names = [[f"{place}{i}" for i in range(len(tokens))] for place, tokens in zip("BE", around, strict=True)]
    before, after = names
    ids = dict(zip(before + after, around[0] + around[1], strict=True))
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B", *after],
        special_tokens=[{"id": name, "ids": [id], "tokens": [backend.id_to_token(id)]} for name, id in ids.items()],
    )


def _shown(backend: Tokenizer, around: Around) -> str:
    before, after = ([str(backend.id_to_token(token)) for token in tokens] for tokens in around)
    return " ".join([*before, "text", *after])
