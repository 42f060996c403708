"""Finds the model that made the vectors of an output, and how queries are encoded with it."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvec.errors import ModelError
from fastvec.output.reader import Output
from fastvec.settings import EncoderSettings, resolve_settings

if TYPE_CHECKING:  # imports torch, which a wrong model does not need
    from fastvec.encoder import Encoder

# what may differ between a query and the texts: the numbers it is computed in, and what stands before it
_OWN_TO_A_QUERY = ("dtype", "instruction")
_OF_EOS = ("append_eos", "add_bos_token", "add_eos_token")
QUERY_PROMPT = "query"


def encoder_for(
    output: Output,
    encoder: "Encoder | None" = None,
    *,
    model: str | Path | None = None,
    adapters: Sequence[str | Path] = (),
    device: str = "auto",
) -> "Encoder":
    """Return `encoder`, or load the model that made the vectors of `output`, from `model` if it is not None.

    Raises ModelError if either is another model.
    """
    if encoder is not None:
        require_made_by(output, encoder.settings)
        return encoder
    settings = query_settings(output, model=model, adapters=adapters, device=device)
    from fastvec.encoder import Encoder

    return Encoder(settings)


def query_settings(
    output: Output,
    *,
    model: str | Path | None = None,
    adapters: Sequence[str | Path] = (),
    device: str = "auto",
) -> EncoderSettings:
    """Return the settings that made the vectors of `output`, except for the dtype, which is this machine's fastest.

    `model` and `adapters` say where the model is, if it is not where its name in the output says. Raises ModelError if
    it is not there, or is another model.
    """
    made = output.fingerprint
    here: str | Path = output.own.get("model", "") if model is None else model
    is_named = model is None and not Path(here).is_dir()
    options: dict[str, Any] = {
        "adapters": adapters,
        "revision": (output.own.get("revision") or None) if is_named else None,
        "device": device,
        **{name: made.get(name) for name in ("pooling", "normalize", "bidirectional")},
    }
    try:
        settings = resolve_settings(here, **options)
    except ModelError as error:
        if model is not None:
            raise
        raise ModelError(f"{error}; {output.path.name} names this model: give its folder with --model") from None
    if not _differences(made, settings, ("weights", "tokenizer")):
        options |= {name: made.get(name) for name in ("max_length", "dims")}
        settings = resolve_settings(here, **options)
    if _differences(made, settings) and not _differences(made, settings, set(made) - {*_OF_EOS, *_OWN_TO_A_QUERY}):
        for eos in (True, False):  # only the effect of --eos is recorded
            other = resolve_settings(here, eos=eos, **options)
            if not _differences(made, other):
                return other
    require_made_by(output, settings)
    return settings


def require_made_by(output: Output, settings: EncoderSettings) -> None:
    """Raise ModelError if a model with `settings` does not make the vectors of `output`."""
    if names := _differences(output.fingerprint, settings):
        raise ModelError(
            f"{output.path.name} was not made by {settings.checkpoint.name} as it is here, but by another "
            f"{', '.join(names[:-1])}{' and ' if names[1:] else ''}{names[-1]}: give the model that made it "
            f"({output.own.get('model', 'unknown')}) with --model, and its --adapter"
        )


def _differences(made: Mapping[str, Any], settings: EncoderSettings, names: Collection[str] | None = None) -> list[str]:
    """Return the names of the settings that differ, among `names` if given."""
    here = settings.fingerprint("", None)
    # a rule of EOS that neither states is in neither fingerprint
    compared = dict.fromkeys([*here, *(name for name in _OF_EOS if name in made)])
    wanted = [name for name in compared if name not in _OWN_TO_A_QUERY and (names is None or name in names)]
    return [name for name in wanted if made.get(name) != here.get(name)]


def query_prompt(
    output: Output, settings: EncoderSettings, instruction: str | None = None, prompt_name: str | None = None
) -> tuple[str | None, str | None]:
    """Return the instruction, or the name of the prompt, for queries: what is given, or what the model has for queries.

    A model without a prompt named `query` gets what stood before the texts. Raises UsageError for both at once, or for
    a prompt that the model does not have.
    """
    if instruction is None and prompt_name is None:
        prompts, before = settings.checkpoint.prompts, output.own.get("instruction", "")
        if QUERY_PROMPT in prompts:
            return None, QUERY_PROMPT
        same = [name for name, text in prompts.items() if text == before]
        return (None, same[0]) if same and before else (before, None)
    settings.prefix(instruction, prompt_name)
    return instruction, prompt_name
