from pathlib import Path

import pytest

from fastvec.checkpoints.checkpoint import resolve
from fastvec.errors import ModelError
from fastvec.texts.from_transformers import tokenizer_from_transformers
from fastvec.texts.prompt import text_affixes
from tests.helpers.checkpoints import copy, edit_json

LLAMA_3 = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|start|>{{ message.role }}<|end|>\n\n{{ message.content | trim }}<|eot|>{% endfor %}"
)


LLAMA_2 = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ bos_token + ' [INST] ' + message.content + ' [/INST]' }}{% endfor %}"
)


CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help. Today is {{ strftime_now('%d %b %Y') }}."
    "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
)


def wrapped(base: Path, tmp_path: Path, template: str | None, **llm2vec: object) -> Path:
    """An LLM2Vec folder with a base whose texts LLM2Vec wraps in a chat template."""
    folder = copy(base, tmp_path / "wrapped")
    edit_json(folder / "config.json", _name_or_path="meta-llama/Meta-Llama-3-8B-Instruct")
    edit_json(folder / "llm2vec_config.json", pooling_mode="mean", **llm2vec)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LLAMA_3, ("<|start|>user<|end|>\n\n", "<|eot|>")),
        (LLAMA_2, ("[INST] ", " [/INST]")),
        (CHATML, ("<|im_start|>user\n", "<|im_end|>")),
    ],
    ids=["llama 3", "llama 2, turns alternate", "chatml with a dated system message"],
)
def test_the_frame_is_the_user_turn_of_the_template(
    tiny_llama: Path, tmp_path: Path, template: str, expected: tuple[str, str]
) -> None:
    checkpoint = resolve(wrapped(tiny_llama, tmp_path, template))
    assert text_affixes(checkpoint, tokenizer_from_transformers(checkpoint)) == expected


def test_without_a_template_there_is_no_frame(tiny_llama: Path) -> None:
    checkpoint = resolve(tiny_llama)
    assert text_affixes(checkpoint, tokenizer_from_transformers(checkpoint)) == ("", "")


@pytest.mark.parametrize(
    "template", [None, "{{ nothing.of.this }}", "hello", "{% if %}", "{{ raise_exception('no') }}"]
)
def test_a_template_that_does_not_take_a_text_is_refused(
    tiny_llama: Path, tmp_path: Path, template: str | None
) -> None:
    checkpoint = resolve(wrapped(tiny_llama, tmp_path, template))
    with pytest.raises(ModelError, match="template"):
        text_affixes(checkpoint, tokenizer_from_transformers(checkpoint))


def test_a_pooled_eos_follows_the_text(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy(tiny_llama, tmp_path / "model")
    edit_json(folder / "llm2vec_config.json", pooling_mode="eos_token")
    checkpoint = resolve(folder)
    assert text_affixes(checkpoint, tokenizer_from_transformers(checkpoint)) == ("", " </s>")
    edit_json(folder / "tokenizer_config.json", eos_token="<mask>")
    assert text_affixes(checkpoint, tokenizer_from_transformers(checkpoint)) == ("", "<mask>")
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match="pools the EOS token, but its tokenizer has none"):
        text_affixes(checkpoint, tokenizer_from_transformers(checkpoint))
