"""Compares fingerprints: the JSON values that identify a job, and distinguish its output from another job's."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from fastvec.errors import RefusedError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

REMEDY = "replace it with --overwrite, or choose another -o"
SHOWN_DIFFERENCES = 5
SHOWN_CHARACTERS = 80  # of a value


def refuse_another_job(path: object, begun: Mapping[str, Json], asked: Mapping[str, Any]) -> None:
    """Raise RefusedError with the differences if the files at `path` are of the job `begun`, not of the one `asked`."""
    if found := fingerprint_differences(begun, asked):
        rest = len(found) - SHOWN_DIFFERENCES
        more = f"; and {rest} more" if rest > 0 else ""
        raise RefusedError(f"{path} belongs to another job: {'; '.join(found[:SHOWN_DIFFERENCES])}{more}; {REMEDY}")


def fingerprint_differences(begun: Mapping[str, Json], asked: Mapping[str, Any]) -> list[str]:
    """Compare a fingerprint that was read from JSON with one that was not written yet."""
    return list(differences(begun, json.loads(json.dumps(dict(asked))), ""))


def differences(old: Json, new: Json, name: str) -> Iterator[str]:
    """Yield a phrase for each place below `name` at which two JSON values differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (old_item, new_item) in enumerate(zip(old, new, strict=True)):
            yield from differences(old_item, new_item, f"{name}[{i}]")
    elif isinstance(old, list) and isinstance(new, list) and max(len(_text(old)), len(_text(new))) > SHOWN_CHARACTERS:
        at = next(
            (i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), min(len(old), len(new))
        )
        was, now = (_text(values[at]) if at < len(values) else "absent" for values in (old, new))
        yield f"{name} was {len(old)} values, now {len(new)}: {name}[{at}] was {_cut(was)}, now {_cut(now)}"
    elif old != new or type(old) is not type(new):
        yield f"{name} was {_cut(_text(old))}, now {_cut(_text(new))}"


def _text(value: Json) -> str:
    return json.dumps(value)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
