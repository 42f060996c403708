"""What stands around a text by a checkpoint's rules: an instruction, a user turn, an EOS."""

from contextlib import suppress
from typing import Any

from tokenizers import Tokenizer, normalizers

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.checkpoints.settings import EncoderSettings
from fastvec.errors import ModelError, one_line
from fastvec.texts.tokenizer import LoadedTokenizer, TextRecipe, TextTokenizer


def lower_if_asked(checkpoint: Checkpoint, backend: Tokenizer) -> None:
    """Let `backend` lower-case texts where the checkpoint says so."""
    if checkpoint.lower_case:
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def text_tokenizer(
    settings: EncoderSettings,
    tokenizer: LoadedTokenizer,
    instruction: str | None = None,
    prompt_name: str | None = None,
    *,
    embeddings: int | None = None,
) -> TextTokenizer:
    """What turns texts into token ids by a checkpoint's rules; raises UsageError as `EncoderSettings.prefix` does.

    `embeddings` is that of `TextTokenizer`.
    """
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
    return TextTokenizer(tokenizer, recipe, embeddings=embeddings)


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
