import struct
import zlib

import numpy as np
import pytest

from fastvec.maps.drawing import Coloring, Label
from fastvec.maps.picture import picture_of
from tests.maps.outputs import HOSTILE, make_drawing


def pixels(png: bytes) -> tuple[int, int]:
    """The width and height of a PNG, all of whose chunks are whole."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at = 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        (crc,) = struct.unpack(">I", png[at + 8 + length : at + 12 + length])
        assert crc == zlib.crc32(png[at + 4 : at + 8 + length])
        at += 12 + length
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize("texts", [HOSTILE, ("$x$ 東京", "$\\broken{")])
def test_any_text_can_be_drawn(texts: tuple[str, ...]) -> None:
    png = picture_of(make_drawing(texts))
    assert pixels(png) == (1600, 1120)
    assert picture_of(make_drawing(texts)) == png


def test_a_scale_has_a_legend() -> None:
    def drawn(ends: tuple[str, ...]) -> bytes:
        coloring = Coloring(column="size", palette=("#000000", "#ffffff", "#777777"), of_points=np.arange(3), ends=ends)
        return picture_of(make_drawing(("a", "b", "c"), coloring=coloring))

    assert pixels(drawn(("1", "9"))) == (1600, 1120)
    assert drawn(("1", "9")) != drawn(("1", "8"))


def test_a_label_that_overlaps_an_earlier_one_is_left_out() -> None:
    def drawn(*labels: str) -> bytes:
        made = (Label(x=1, y=1, is_above=False, text=text, color="#000000") for text in labels)
        return picture_of(make_drawing(("a", "b", "c"), labels=tuple(made)))

    assert drawn("first", "second") == drawn("first")
    assert drawn("second", "first") == drawn("second") != drawn("first")
