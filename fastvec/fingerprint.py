"""Compares fingerprints: the JSON values that identify a job, and distinguish its output from another job's."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


def differences(old: Json, new: Json, name: str) -> Iterator[str]:
    """Yield a phrase for each place below `name` at which two JSON values differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (old_item, new_item) in enumerate(zip(old, new, strict=True)):
            yield from differences(old_item, new_item, f"{name}[{i}]")
    elif old != new or type(old) is not type(new):
        yield f"{name} was {_short(old)}, now {_short(new)}"


def _short(value: Json) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
