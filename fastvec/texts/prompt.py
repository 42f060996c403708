"""What stands around a text by a checkpoint's rules: an instruction, a user turn, an EOS."""

from contextlib import suppress
from typing import Any

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.errors import ModelError, one_line
from fastvec.texts.tokenizer import LoadedTokenizer


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
