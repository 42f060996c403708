"""Compares fingerprints: the JSON values that identify a job, and distinguish its output from another job's."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from fastvec.errors import RefusedError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

REMEDY = "replace it with --overwrite, or choose another -o"
NS = 1_000_000_000
SHOWN_DIFFERENCES = 5
SHOWN_CHARACTERS = 80  # of a value


def refuse_another_job(path: object, begun: Mapping[str, Json], asked: Mapping[str, Any]) -> None:
    """Raise RefusedError with the differences if the files at `path` are of the job `begun`, not of the one `asked`."""
    if found := fingerprint_differences(begun, asked):
        if touched := _touched(begun, asked):
            uri, before = touched
            raise RefusedError(
                f"{path} belongs to another job: {uri} has another modification time; if its content is the same, set "
                f"the time back: touch -d @{before // NS}.{before % NS:09} {shlex.quote(uri)}; else {REMEDY}"
            )
        rest = len(found) - SHOWN_DIFFERENCES
        more = f"; and {rest} more" if rest > 0 else ""
        raise RefusedError(f"{path} belongs to another job: {'; '.join(found[:SHOWN_DIFFERENCES])}{more}; {REMEDY}")


def _touched(begun: Mapping[str, Json], asked: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the first input that has another modification time, as a copy has, and what it was, in ns.

    None if anything else differs. Inputs are lists of a name, a size and a version, which is a time for local files.
    """
    before, now = begun.get("inputs"), asked.get("inputs")
    if not (isinstance(before, list) and isinstance(now, list) and len(before) == len(now)):
        return None
    changed = [(old, new) for old, new in zip(before, now, strict=True) if old != list(new)]
    if any(len(old) != 3 or old[:2] != list(new[:2]) or not isinstance(old[2], int) for old, new in changed):
        return None
    others = ({name: value for name, value in one.items() if name != "inputs"} for one in (begun, asked))
    return (changed[0][0][0], changed[0][0][2]) if changed and not fingerprint_differences(*others) else None


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
