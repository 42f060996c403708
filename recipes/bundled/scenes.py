"""Simple sentences about people, animals and things, by a grammar: who does what to whom, where and when.

Encyclopedias have few of them. A scene is told as a statement, a question, a denial or in the passive, and again with
one of its parts exchanged: sentences with nearly the same words and another meaning, which a bag of words cannot tell
apart.
"""

import random
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

WORDS: dict[str, str] = tomllib.loads(Path(__file__).with_name("scenes.toml").read_text(encoding="utf-8"))
PEOPLE, ANIMALS, FOODS, THINGS = (WORDS[name].split() for name in ("people", "animals", "foods", "things"))
LOOKS, STATES = (WORDS[name].split() for name in ("looks", "states"))
ANIMAL_LOOKS = 12  # the first of LOOKS, which animals have too
PLACES, TIMES = (WORDS[name].strip().split("\n") for name in ("places", "times"))
DEEDS = [verb.split() for verb in WORDS["deeds"].strip().split("\n")]
ANIMAL_DEEDS = WORDS["animal_deeds"].split()
ACTIONS = [
    (verb.split(), kinds) for verb, _, kinds in (line.partition(":") for line in WORDS["actions"].strip().split("\n"))
]
ANIMAL_ACTIONS = WORDS["animal_actions"].split()
KINDS = {
    "p": PEOPLE,
    "a": ANIMALS,
    "f": FOODS,
    "t": THINGS,
    "A": ["horse", "camel", "elephant", "bike", "motorcycle", "donkey", "pony", "bicycle"],
    "V": ["car", "truck", "bus", "train", "tractor", "van", "taxi"],
    "I": ["guitar", "piano", "violin", "flute", "drum", "trumpet", "cello", "saxophone"],
    "B": ["book", "newspaper", "letter", "map", "magazine", "story", "poem"],
}
NUMBERS = ["two", "three", "four", "five", "some", "several", "many", "a few", "a group of", "a couple of"]
PLURALS = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "policeman": "policemen",
    "fireman": "firemen", "fisherman": "fishermen", "wolf": "wolves", "calf": "calves", "knife": "knives",
    "thief": "thieves", "mouse": "mice", "sheep": "sheep", "deer": "deer", "fish": "fish", "goose": "geese",
    "tomato": "tomatoes", "potato": "potatoes", "shrimp": "shrimp",
}  # fmt: skip


def plural(noun: str) -> str:
    if noun in PLURALS:
        return PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


@dataclass(frozen=True)
class Noun:
    noun: str
    look: str = ""
    number: str = ""  # none: singular
    definite: bool = False

    @property
    def bare(self) -> str:
        return f"{self.look} {plural(self.noun) if self.number else self.noun}".strip()

    def __str__(self) -> str:
        if self.number:
            return f"{'the' if self.definite else self.number} {self.bare}"
        if self.definite:
            return f"the {self.bare}"
        return f"{'an' if self.bare[0] in 'aeiou' else 'a'} {self.bare}"

    def be(self, past: bool = False) -> str:
        return ("were" if past else "are") if self.number else ("was" if past else "is")


@dataclass(frozen=True)
class Scene:
    who: Noun
    verb: tuple[str, ...]
    whom: Noun | None = None
    place: str = ""
    time: str = ""
    tense: str = "is doing"  # or was doing, does, did

    @property
    def rest(self) -> str:
        return f"{self.whom or ''} {self.place} {self.time}"

    def told(self) -> str:
        base, third, doing, did = self.verb[:4]
        does = {
            "is doing": f"{self.who.be()} {doing}",
            "was doing": f"{self.who.be(past=True)} {doing}",
            "does": base if self.who.number else third,
            "did": did,
        }[self.tense]
        return f"{self.who} {does} {self.rest}"

    def denied(self, random: random.Random) -> str:
        base, _, doing, did = self.verb[:4]
        be, do = self.who.be(), "do" if self.who.number else "does"
        ways = [
            f"{self.who} {be} not {doing} {self.rest}",
            f"{self.who} {be}n't {doing} {self.rest}",
            f"there {be} no {self.who.bare} {doing} {self.rest}",
            f"nobody is {doing} {self.rest}",
            f"{self.who} {do} not {base} {self.rest}",
            f"{self.who} did not {base} {self.rest}",
            f"{self.who} never {did} {self.rest}",
        ]
        if self.place:
            ways.append(f"{self.who} {be} {doing} {self.whom or ''} but not {self.place}")
        return random.choice(ways)

    def asked(self, random: random.Random) -> str:
        base, _, doing, _ = self.verb[:4]
        be = self.who.be()
        return random.choice(
            [
                f"{be} {self.who} {doing} {self.rest}?",
                f"why {be} {self.who} {doing} {self.rest}?",
                f"who is {doing} {self.rest}?",
                f"can {self.who} {base} {self.rest}?",
                f"how do I {base} {self.whom or ''} {self.place}?",
                f"what {be} {self.who} doing {self.place}?",
                f"where did {self.who} {base} {self.whom or ''}?",
            ]
        )

    def passive(self) -> str:
        assert self.whom
        be = f"{self.whom.be()} being" if self.tense == "is doing" else self.whom.be(past=True)
        return f"{self.whom} {be} {self.verb[4]} by {self.who} {self.place} {self.time}"


def noun(random: random.Random, words: list[str], looks: list[str]) -> Noun:
    return Noun(
        random.choice(words),
        look=random.choice(looks) if random.random() < 0.25 else "",
        number=random.choice(NUMBERS) if random.random() < 0.2 else "",
        definite=random.random() < 0.3,
    )


def scene(random: random.Random) -> Scene:
    animal = random.random() < 0.25
    who = noun(random, ANIMALS, LOOKS[:ANIMAL_LOOKS]) if animal else noun(random, PEOPLE, LOOKS)
    place = random.choice(PLACES) if random.random() < 0.45 else ""
    time = random.choice(TIMES) if random.random() < 0.15 else ""
    (tense,) = random.choices(["is doing", "was doing", "does", "did"], [6, 1, 1, 2])
    if random.random() < 0.4:
        deeds = [verb for verb in DEEDS if not animal or verb[0] in ANIMAL_DEEDS]
        return Scene(who, tuple(random.choice(deeds)), None, place, time, tense)
    verb, kinds = random.choice([one for one in ACTIONS if not animal or one[0][0] in ANIMAL_ACTIONS])
    kind = random.choice(kinds)
    whom = noun(random, KINDS[kind], LOOKS if kind in "pa" else STATES)
    return Scene(who, tuple(verb), whom, place, time, tense)


def scenes(random: random.Random) -> list[str]:
    """Return a scene's sentence, and three others of its words or of most of them."""
    one, other = scene(random), scene(random)
    doing = one.verb[2]
    ways: list[Callable[[], str]] = [
        lambda: one.denied(random),
        lambda: one.asked(random),
        lambda: f"there {one.who.be()} {replace(one.who, definite=False)} {doing} {one.rest}",
        lambda: f"{one.who} {doing} {one.rest}",
        lambda: replace(one, who=other.who).told(),
        lambda: replace(one, place=random.choice(PLACES)).told(),
        lambda: replace(one, tense=random.choice(["is doing", "was doing", "did"])).told(),
        lambda: replace(one, who=replace(one.who, look=random.choice(LOOKS))).told(),
        lambda: f"{one.told()} and {other.told()}",
        lambda: f"{one.told()} while {other.told()}",
        lambda: f"{other.told()} because {one.told()}",
        lambda: f"{one.who} and {other.who} are {doing} {one.rest}",
    ]
    whom = one.whom
    if whom is None:
        ways.append(lambda: replace(one, verb=tuple(random.choice(DEEDS))).told())
    else:
        ways += [
            one.passive,
            lambda: replace(one, whom=replace(whom, look=random.choice(STATES))).told(),
            lambda: replace(one, verb=tuple(random.choice(ACTIONS)[0])).told(),
        ]
        if whom.noun in PEOPLE or whom.noun in ANIMALS:
            ways += [lambda: replace(one, who=whom, whom=one.who).told()] * 2
    return [one.told(), *(way() for way in random.sample(ways, 3))]
