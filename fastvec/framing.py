"""What stands around a text by a checkpoint's rules: an instruction, a user turn, an EOS."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tokenizers import Tokenizer, normalizers, processors

from fastvec.checkpoint import Checkpoint
from fastvec.errors import ModelError, one_line
from fastvec.settings import EncoderSettings
from fastvec.tokenize import LoadedTokenizer, TextRecipe, TextTokenizer, special_tokens

logger = logging.getLogger(__name__)


def lower_if_asked(checkpoint: Checkpoint, backend: Tokenizer) -> None:
    """Let `backend` lower-case texts where the checkpoint says so."""
    if checkpoint.lower_case:
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def frame_if_asked(checkpoint: Checkpoint, tokenizer: LoadedTokenizer) -> None:
    """Let BOS begin and EOS end every sequence, or not, where the checkpoint says otherwise than tokenizer.json.

    What it settles is a part of the tokenizer then, and is saved with it. Raises ModelError where the token to add has
    no name.
    """
    for flag, token in (("add_bos_token", tokenizer.bos_token_id), ("add_eos_token", tokenizer.eos_token_id)):
        if checkpoint.flags.get(flag) and token is None:
            raise ModelError(f"{checkpoint.name} is to have {flag}: true, and its tokenizer names no such token")
    backend = tokenizer.backend_tokenizer
    own = special_tokens(backend)
    settled, unsettled = (_around(own, tokenizer, flags) for flags in (checkpoint.flags, checkpoint.unsettled_flags))
    sequence = _shown(backend, *own)
    if settled != own:
        backend.post_processor = _template(backend, *settled)
        stated, shown = _stated(checkpoint.flags), _shown(backend, *settled)
        logger.info("%s: sequences are %s (in tokenizer.json %s): %s", checkpoint.name, shown, sequence, stated)
    elif unsettled != own and "add_eos_token" not in checkpoint.flags:
        logger.warning(
            "%s: sequences are %s as in tokenizer.json, though tokenizer_config.json says %s: --eos or --no-eos says "
            "whether EOS ends them",
            checkpoint.name,
            sequence,
            _stated(checkpoint.unsettled_flags),
        )


def _around(
    own: tuple[list[int], list[int]], tokenizer: LoadedTokenizer, flags: Mapping[str, bool]
) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text: its own ones, with BOS and EOS as `flags` state."""
    before, after = own
    return (
        _with_or_without(before, tokenizer.bos_token_id, flags.get("add_bos_token"), at_end=False),
        _with_or_without(after, tokenizer.eos_token_id, flags.get("add_eos_token"), at_end=True),
    )


def _with_or_without(tokens: list[int], token: int | None, wanted: bool | None, *, at_end: bool) -> list[int]:
    if wanted is None or token is None or wanted == (token in tokens):
        return tokens
    if not wanted:
        return [other for other in tokens if other != token]
    return [*tokens, token] if at_end else [token, *tokens]


def _template(backend: Tokenizer, before: list[int], after: list[int]) -> processors.TemplateProcessing:
    """Named by their place, as a token's own name may hold what a template reads as its syntax."""
    tokens = {f"before{i}": token for i, token in enumerate(before)} | {f"after{i}": t for i, t in enumerate(after)}
    around = [[name for name in tokens if name.startswith(place)] for place in ("before", "after")]
    return processors.TemplateProcessing(
        single=[*around[0], "$A", *around[1]],
        pair=[*around[0], "$A", *around[1], *around[0], "$B", *around[1]],
        special_tokens=[
            {"id": name, "ids": [token], "tokens": [backend.id_to_token(token)]} for name, token in tokens.items()
        ],
    )


def _shown(backend: Tokenizer, before: list[int], after: list[int]) -> str:
    names = [[str(backend.id_to_token(token)) for token in tokens] for tokens in (before, after)]
    return " ".join([*names[0], "text", *names[1]])


def _stated(flags: Mapping[str, bool]) -> str:
    return ", ".join(f"{flag}: {str(value).lower()}" for flag, value in flags.items())


def text_tokenizer(
    settings: EncoderSettings,
    tokenizer: LoadedTokenizer,
    instruction: str | None = None,
    prompt_name: str | None = None,
) -> TextTokenizer:
    """What turns texts into token ids by a checkpoint's rules; raises UsageError as `EncoderSettings.prefix` does."""
    checkpoint = settings.checkpoint
    prefix = settings.prefix(instruction, prompt_name)
    before, after = text_frame(checkpoint, tokenizer)
    recipe = TextRecipe(
        prefix=before + prefix,
        suffix=after,
        max_length=settings.max_length,
        text_max_length=checkpoint.text_max_length,
        pooled=settings.pooled_span(prefix),
        strip_end=checkpoint.strip,
    )
    return TextTokenizer(tokenizer, recipe)


def text_frame(checkpoint: Checkpoint, tokenizer: LoadedTokenizer) -> tuple[str, str]:
    """What stands before the instruction and after the text: a user turn, an EOS, or nothing.

    Raises ModelError where the checkpoint needs a chat template or an EOS and the tokenizer has none.
    """
    before, after = _user_turn(checkpoint, tokenizer) if checkpoint.chat_template else ("", "")
    if checkpoint.append_eos:
        eos = tokenizer.eos_token
        if not isinstance(eos, str):
            raise ModelError(f"{checkpoint.name} pools its EOS token, and its tokenizer names none")
        if not after.endswith(eos):
            after += " </s>" if eos == "</s>" else eos  # the space is LLM2Vec's; a SentencePiece makes a token of it
    return before, after


def _user_turn(checkpoint: Checkpoint, tokenizer: Any) -> tuple[str, str]:
    """What the chat template puts before and after a user's message, without BOS and white space at the ends.

    A default system message is no part of it (in some templates it holds today's date): where a template takes two user
    messages in a row, the second one's turn is the turn alone.
    """

    def render(*messages: str) -> str:
        turns = [{"role": "user", "content": message} for message in messages]
        return str(tokenizer.apply_chat_template(turns, tokenize=False))

    try:
        turn = first = render("fastvec")
    except Exception as error:  # a template is a program, and can fail like one
        raise ModelError(
            f"{checkpoint.name} was trained in a chat template it does not hold: {one_line(error)}"
        ) from None
    with suppress(Exception):  # templates that want an answer in between have no default system message
        both = render("fastvec", "fastvec")
        turn = both.removeprefix(first) if both.startswith(first) else first
    before, message, after = turn.partition("fastvec")
    if not message:
        raise ModelError(f"the chat template of {checkpoint.name} leaves out the user's message")
    return before.removeprefix(str(tokenizer.bos_token or "")).lstrip(), after.rstrip()
