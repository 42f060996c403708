"""Pages in a real browser. `make test-browser` installs what they need; without it, they are skipped."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from fastvec.maps.job import draw_map
from tests.maps.browser import NO_GL, PLACE, SOFTWARE_GL, VISIBLE, Browser, browser, missing
from tests.maps.outputs import HOSTILE, random_vectors, write_vectors

if missing():
    pytest.skip(missing(), allow_module_level=True)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium leaves its connection to be collected
]
TITLES = (*HOSTILE, "Zürich", *(f"Whale {i}" for i in range(7)))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map of 12 points; titles, texts and the values of the legend are hostile."""
    folder = tmp_path_factory.mktemp("map")
    kept = {"title": pa.array(TITLES), "text": pa.array([f"{t} is a text" for t in TITLES]), "k": pa.array(HOSTILE * 3)}
    vecs = write_vectors(folder / "vecs.arrow", random_vectors(12), **kept)
    draw_map([vecs], folder / "map.html", color="k")
    return folder / "map.html"


@pytest.fixture(scope="module", params=[SOFTWARE_GL, NO_GL], ids=["webgl", "without webgl"])
def opened(page: Path, request: pytest.FixtureRequest) -> Iterator[Browser]:
    with browser(*request.param) as one:
        one.open(page)
        yield one


def image(opened: Browser) -> npt.NDArray[np.float64]:
    """What the window shows, [height, width, red green blue], between 0 and 1."""
    from matplotlib.image import imread

    pixels: Any = imread(io.BytesIO(opened.driver.get_screenshot_as_png()), format="png")
    return np.asarray(pixels[..., :3], np.float64)


def shades(opened: Browser) -> list[float]:
    """How far from white each point is."""
    pixels = image(opened)
    places = [opened.run(PLACE, index) for index in range(len(TITLES))]
    return [float(np.abs(1 - pixels[round(y), round(x)]).max()) for x, y in places]


def test_points_are_drawn(opened: Browser) -> None:
    opened.point_to(5, 5)
    opened.run("document.getElementById('labels').style.display = 'none'")  # some are over points
    opened.wait(lambda: min(shades(opened)) > 0.3)
    opened.run("document.getElementById('labels').style.display = ''")


def test_the_text_under_the_mouse_is_shown_as_text(opened: Browser) -> None:
    for index, title in enumerate(TITLES):
        opened.point_to(*opened.run(PLACE, index))
        opened.wait_for_text(f"{title}\nis a text\n")
        assert f"row {index}\n" in opened.run(VISIBLE)
    assert opened.run("return window.attacked") is None
    assert opened.run("return document.querySelectorAll('img, script[src]').length") == 0


def test_search_highlights_what_contains_all_words(opened: Browser) -> None:
    opened.point_to(5, 5)
    for words, found in (
        ("whale 4", [9]),
        ("ZURICH", [4]),
        ("<script>", [0, 2, 4, 6, 8, 10]),
        ("text is", list(range(12))),
    ):
        opened.search(words)
        assert opened.run("return window.fastvecMap.source.selected.indices") == found
        assert f"{len(found)} of 12" in opened.run(VISIBLE)
    opened.search("whale 4")
    opened.wait(lambda: sum(shade > 0.3 for shade in shades(opened)) <= 2)  # a label may be over another point
    assert shades(opened)[9] > 0.3
    opened.search("kangaroo")
    assert "nothing found" in opened.run(VISIBLE)
    opened.driver.find_element("id", "reset").click()
    assert opened.run("return window.fastvecMap.source.selected.indices") == []


def test_a_click_on_a_value_of_the_legend_highlights_it(opened: Browser) -> None:
    value = opened.driver.find_element("css selector", "#legend .swatch + span")
    text, selected = value.text, "return window.fastvecMap.source.selected.indices"
    assert text in [" ".join(one.split())[:40] for one in HOSTILE]
    value.click()
    points = opened.run(selected)
    assert len(points) == 3
    value.click()
    assert opened.run(selected) == []


def test_a_value_that_ends_another_one_is_highlighted(tmp_path: Path) -> None:
    kinds = pa.array(["female", "female", "male"])
    draw_map([write_vectors(tmp_path / "vecs.arrow", random_vectors(3), k=kinds)], tmp_path / "map.html", color="k")
    with browser(*NO_GL) as opened:
        opened.open(tmp_path / "map.html")
        for value in opened.driver.find_elements("css selector", "#legend .swatch + span"):
            value.click()
            points = [i for i, kind in enumerate(kinds.to_pylist()) if kind == value.text]
            assert points
            assert opened.run("return window.fastvecMap.source.selected.indices") == points


def test_the_wheel_zooms_and_a_drag_moves(opened: Browser) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    view = "const {x_range: x} = window.fastvecMap.plot; return [x.start, x.end]"
    before = opened.run(view)
    origin = ScrollOrigin.from_viewport(600, 400)
    ActionChains(opened.driver).scroll_from_origin(origin, 0, -300).perform()
    zoomed = opened.wait(lambda: opened.run(view) != before and opened.run(view))
    assert zoomed[1] - zoomed[0] < before[1] - before[0]
    actions = ActionChains(opened.driver, duration=200)
    for act in ("pointer_down", "pointer_up"):
        actions.w3c_actions.pointer_action.move_to_location(600 if act == "pointer_down" else 700, 400)
        getattr(actions.w3c_actions.pointer_action, act)()
    actions.perform()
    moved = opened.wait(lambda: opened.run(view)[0] < zoomed[0] and opened.run(view))
    assert moved[1] - moved[0] == pytest.approx(zoomed[1] - zoomed[0])
    opened.driver.find_element("id", "reset").click()
    assert opened.run(view) == pytest.approx(before)


def test_labels_do_not_overlap(opened: Browser) -> None:
    visible = (
        "return window.fastvecMap.labels.filter(({box}) => box.style.visibility === 'visible')"
        ".map(({box}) => box.getBoundingClientRect()).map(({left, right, top, bottom}) => [left, right, top, bottom])"
    )
    opened.driver.find_element("id", "reset").click()
    boxes = opened.wait(lambda: opened.run(visible))
    for i, (left, right, top, bottom) in enumerate(boxes):
        for other in boxes[:i]:
            assert right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top


def test_the_policy_refuses_requests_and_foreign_scripts(opened: Browser) -> None:
    """The last test of a page: it causes what the others must not see."""
    severe = [entry["message"] for entry in opened.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []
    assert {url.partition(":")[0] for url in opened.requests()} <= {"file", "data", "blob"}
    refused = opened.driver.execute_async_script(
        """
        const done = arguments[0], refused = [];
        document.addEventListener("securitypolicyviolation", (event) => {
          refused.push(event.effectiveDirective);
          if (refused.length === 3) done(refused.sort());
        });
        fetch("https://example.com/").catch(() => 0);
        new Image().src = "https://example.com/x.png";
        const script = document.createElement("script");
        script.textContent = "window.attacked = 3";
        document.body.append(script);
        """
    )
    assert refused == ["connect-src", "img-src", "script-src-elem"]
    assert opened.run("return window.attacked") is None
