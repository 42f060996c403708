"""Short texts from templates: headlines and what customers ask, of which encyclopedias have few.

A template has slots, such as `{country}` and `{country2}`, for words of the list `country`; `{act.1}` is the second
form of a word. A family is templates that say nearly the same or the opposite. Texts of a family share their words but
for one slot that is filled again.
"""

import random
import re
import tomllib
from pathlib import Path
from typing import Any

SLOT = re.compile(r"\{([a-z]+)(\d?)(?:\.(\d))?\}")


class Templates:
    """The families and lists of a TOML file: the table `words` has lists separated by |, `families` has templates."""

    def __init__(self, path: Path) -> None:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        self._words = {name: _listed(text) for name, text in document["words"].items()}
        self._families: list[list[str]] = [one["templates"] for one in document["families"]]
        self._weights = [one["weight"] for one in document["families"]]

    def texts(self, random: random.Random, count: int = 4) -> list[str]:
        """Return `count` texts of a random family; the first two have the same words in their slots."""
        (templates,) = random.choices(self._families, self._weights)
        chosen = [random.choice(templates) for _ in range(count)]
        slots = sorted({match.group(1, 2) for template in chosen for match in SLOT.finditer(template)})
        words = {slot: random.choice(self._words[slot[0]]) for slot in slots}
        found = []
        for place, template in enumerate(chosen):
            if place > 1 and slots:
                slot = random.choice(slots)
                words = words | {slot: random.choice(self._words[slot[0]])}
            found.append(_filled(template, words))
        return found


def _listed(text: str) -> list[list[str]]:
    """Return the words of a list, each as its forms."""
    return [word.strip().split("/") for word in text.replace("\n", " ").split("|")]


def _filled(template: str, words: dict[tuple[str | Any, ...], list[str]]) -> str:
    text = SLOT.sub(lambda match: words[match.group(1, 2)][int(match.group(3) or 0)], template)
    return re.sub(r"\b([Aa]) (?=[aeioAEIO])", r"\1n ", text)
