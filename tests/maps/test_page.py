import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from fastvec.maps.page import page_of
from tests.maps.outputs import HOSTILE, make_drawing


class Page(HTMLParser):
    """What a browser sees in a page: its elements with their attributes, and the texts in them."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside = ""
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside][-1] += data

    @property
    def policy(self) -> dict[str, list[str]]:
        (content,) = (values["content"] for _, values in self.elements if "http-equiv" in values)
        return {name: sources for name, *sources in (part.split() for part in str(content).split(";"))}


@pytest.fixture(scope="module")
def hostile() -> Page:
    return Page(page_of(make_drawing(HOSTILE)))


def test_hostile_texts_are_texts(hostile: Page) -> None:
    tags = [tag for tag, _ in hostile.elements]
    assert (tags.count("script"), tags.count("img"), tags.count("b")) == (3, 0, 0)
    assert hostile.texts["h1"] == hostile.texts["title"] == [HOSTILE[0]]
    data = json.loads(hostile.texts["script"][0])
    assert data["heading"] == data["text"] == data["place"] == [label["text"] for label in data["labels"]]
    assert data["text"] == list(HOSTILE)
    assert (data["legend"]["column"], data["legend"]["names"]) == (HOSTILE[0], list(HOSTILE[:2]))


def test_nothing_is_loaded_from_elsewhere(hostile: Page) -> None:
    loading = {"src", "href", "srcset", "action", "data", "background", "poster"}
    assert [values for _, values in hostile.elements if loading & values.keys()] == []
    assert not any("url(" in style or "@import" in style for style in hostile.texts["style"])


def test_the_policy_admits_only_the_scripts_of_the_page(hostile: Page) -> None:
    scripts = hostile.texts["script"][1:]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert hostile.policy["default-src"] == ["'none'"]
    # BokehJS compiles the drawing of points for WebGL
    assert hostile.policy["script-src"] == [*(f"'sha256-{digest}'" for digest in hashes), "'unsafe-eval'"]
    assert not any(re.match("https?:", source) for sources in hostile.policy.values() for source in sources)


def test_texts_are_cut() -> None:
    page = Page(page_of(make_drawing(("a" * 500, "b"))))
    data = json.loads(page.texts["script"][0])
    assert data["heading"] == ["a" * 119 + "…", "b"]
    assert data["text"] == ["a" * 299 + "…", "b"]


def test_the_same_drawing_gives_the_same_bytes() -> None:
    assert page_of(make_drawing(HOSTILE)) == page_of(make_drawing(HOSTILE))
