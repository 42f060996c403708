"""Writes a map as one HTML file, which needs no network.

BokehJS, from the package bokeh, is inside the file; `page.js` draws with it. The texts of a corpus are foreign: they
are in the file as JSON in which no tag can begin, and `page.js` shows them only as text. A content security policy
admits the file's own scripts by their hashes, and no connections.
"""

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import numpy as np

from fastvec.maps.drawing import Drawing

HERE = Path(__file__).parent
TITLE_CHARACTERS, TEXT_CHARACTERS = 120, 300  # of a caption
COMPONENTS = ["bokeh", "bokeh-gl", "bokeh-api"]


def page_of(drawing: Drawing) -> bytes:
    """Return the page of a drawing. The same drawing gives the same bytes."""
    from bokeh.resources import Resources

    scripts = {
        "bokeh": "\n".join(Resources(mode="inline", components=COMPONENTS, minified=True).js_raw),
        "script": (HERE / "page.js").read_text("utf-8"),
    }
    parts = {
        "title": html.escape(drawing.title),
        "subtitle": html.escape(drawing.subtitle),
        "hashes": " ".join(f"'sha256-{_sha256(script)}'" for script in scripts.values()),
        "data": _json(drawing),
        **scripts,
    }
    template = (HERE / "page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template).encode("utf-8", "replace")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(drawing: Drawing) -> str:
    captions, coloring = drawing.captions, drawing.coloring
    points = np.round(drawing.points, 3)
    data = {
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
        "color": coloring.of_points.tolist(),
        "heading": [_cut(title, TITLE_CHARACTERS) for title in captions.titles],
        "text": [_cut(text, TEXT_CHARACTERS) for text in captions.texts],
        "place": captions.places,
        "palette": coloring.palette,
        "legend": {
            "column": coloring.column,
            "names": coloring.names,
            "counts": coloring.counts,
            "ends": coloring.ends,
        },
        "labels": [
            {"x": one.x, "y": one.y, "above": one.is_above, "text": one.text, "color": one.color}
            for one in drawing.labels
        ],
    }
    # inside <script>, only `<` can end it or begin a comment
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1].rstrip()}…"
