"""Builds the strings that a checkpoint's rules put before and after an instruction and text: a user turn, an EOS."""

from contextlib import suppress
from typing import Any

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.errors import ModelError, one_line
from fastvec.texts.tokenizer import LoadedTokenizer


def text_affixes(checkpoint: Checkpoint, tokenizer: LoadedTokenizer) -> tuple[str, str]:
    """Return the strings before the instruction and after the text: the parts of a user turn, an EOS, or nothing.

    Raises ModelError if the checkpoint needs a chat template or an EOS and the tokenizer has none.
    """
    before, after = _user_turn(checkpoint, tokenizer) if checkpoint.chat_template else ("", "")
    if checkpoint.append_eos:
        eos = tokenizer.eos_token
        if not isinstance(eos, str):
            raise ModelError(f"{checkpoint.name} pools the EOS token, but its tokenizer has none")
        if not after.endswith(eos):
            after += " </s>" if eos == "</s>" else eos  # the space is LLM2Vec's; SentencePiece turns it into a token
    return before, after


def _user_turn(checkpoint: Checkpoint, tokenizer: Any) -> tuple[str, str]:
    """Return what the chat template puts before and after a user's message, without BOS and outer white space.

    The result excludes a default system message, which contains today's date in some templates: if a template accepts
    two user messages in a row, the turn of the second message is used.
    """

    def render(*messages: str) -> str:
        turns = [{"role": "user", "content": message} for message in messages]
        return str(tokenizer.apply_chat_template(turns, tokenize=False))

    try:
        turn = first = render("fastvec")
    except Exception as error:  # a template is a program, and can raise any error
        raise ModelError(
            f"{checkpoint.name} was trained with a chat template that fails to render: {one_line(error)}"
        ) from None
    with suppress(Exception):  # templates that require an answer in between have no default system message
        both = render("fastvec", "fastvec")
        turn = both.removeprefix(first) if both.startswith(first) else first
    before, message, after = turn.partition("fastvec")
    if not message:
        raise ModelError(f"the chat template of {checkpoint.name} omits the user's message")
    return before.removeprefix(str(tokenizer.bos_token or "")).lstrip(), after.rstrip()
