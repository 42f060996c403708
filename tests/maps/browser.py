"""Headless Chromium, driven by its chromedriver, for the tests of pages and for docs/map.png."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
SOFTWARE_GL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
NO_GL = ("--disable-gpu", "--disable-3d-apis")
SECONDS = 60.0  # how long a slow machine may take

# of the point with this number, in pixels of the window
PLACE = """
const {plot, data} = window.fastvecMap, box = document.getElementById("plot").getBoundingClientRect();
const [x, y] = [plot.x_range, plot.y_range], scale = (x.end - x.start) / plot.inner_width;
return [box.left + (data.x[arguments[0]] - x.start) / scale, box.top + (y.end - data.y[arguments[0]]) / scale];
"""
# everything that is shown, also in shadow trees, where BokehJS shows what the mouse is over
VISIBLE = """
const collect = (node) => [node.shadowRoot, ...node.childNodes].filter(Boolean)
  .filter((one) => !["STYLE", "SCRIPT"].includes(one.tagName))
  .map((one) => (one.nodeType === Node.TEXT_NODE ? one.data : collect(one))).join("\\n");
return collect(document.body);
"""


class Browser:
    """A page in a browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path) -> None:
        self.driver.get(page.absolute().as_uri())
        self.wait(lambda: self.run("return document.body.dataset.ready === 'true'"))
        time.sleep(1)  # BokehJS draws in the next frames

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Return the first true value of `condition`. Raises TimeoutError."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.1)
        raise TimeoutError(f"the page did not become ready in {SECONDS:.0f} s")

    def wait_for_text(self, text: str) -> None:
        self.wait(lambda: text in self.run(VISIBLE))

    def point_to(self, x: float, y: float) -> None:
        from selenium.webdriver import ActionChains

        actions = ActionChains(self.driver, duration=0)
        actions.w3c_actions.pointer_action.move_to_location(round(x) + 40, round(y) + 40)
        actions.w3c_actions.pointer_action.move_to_location(round(x), round(y))
        actions.perform()

    def search(self, text: str) -> None:
        box = self.driver.find_element("id", "search")
        box.clear()
        box.send_keys(text)

    def requests(self) -> list[str]:
        """Return the addresses that were requested since the last call."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]


def missing() -> str:
    """Return what is missing to start a browser; nothing if all is there."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "the package selenium is missing: pip install 'fastvec[browser]'"
    if shutil.which("chromedriver") is None or _chromium() is None:
        return "Chromium or its chromedriver is missing: apt-get install chromium chromium-driver"
    return ""


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path is not None), None)


@contextmanager
def browser(*flags: str, width: int = 1200, height: int = 800) -> Iterator[Browser]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, *flags, f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.binary_location = str(_chromium())
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    os.environ["SE_OFFLINE"] = "true"  # or selenium may look for a driver to download
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
