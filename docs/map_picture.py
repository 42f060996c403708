"""Write docs/map.png: the page that `fastvec map` makes of the test corpus, in a browser, with the mouse over a point.

    PYTHONPATH=.:kernels python docs/map_picture.py

It needs Chromium and its chromedriver, and `pip install 'fastvec[map,browser]'`.
"""

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from fastvec import Encoder, embed
from fastvec.maps.job import draw_map
from tests import ARTICLES, ROOT
from tests.maps.browser import PLACE, SOFTWARE_GL, browser, missing

SHOWN = "The Shadow Theory"  # how the title of the text under the mouse begins
COLORS = 128  # of the PNG


def main() -> None:
    if missing():
        sys.exit(missing())
    with tempfile.TemporaryDirectory() as name:
        vecs, page = Path(name) / "vecs.arrow", Path(name) / "map.html"
        embed(ARTICLES, vecs, encoder=Encoder.from_pretrained(), column="text", keep=["title"])
        draw_map([vecs], page)
        with browser(*SOFTWARE_GL, width=1200, height=880) as opened:
            opened.open(page)
            titles = opened.run("return window.fastvecMap.data.heading")
            index = next(i for i, title in enumerate(titles) if title.startswith(SHOWN))
            opened.point_to(*opened.run(PLACE, index))
            opened.wait_for_text(titles[index])
            time.sleep(1)  # the hovered point is drawn in the next frame
            screen = Image.open(io.BytesIO(opened.driver.get_screenshot_as_png()))
    screen.convert("RGB").quantize(COLORS).save(ROOT / "docs/map.png", optimize=True)


if __name__ == "__main__":
    main()
