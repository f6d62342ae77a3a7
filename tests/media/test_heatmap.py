"""Maps of evidence: the part of a picture that they cover, and how they are drawn."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from service.media.heatmap import Region, draw, jet, png, seen_region
from service.media.images import to_model_input
from service.triton.cards import ImageInput

CROPPED = ImageInput(height=224, width=224, resize="shorter-side", resize_to=256)


@pytest.mark.parametrize(
    ("size", "contract", "region"),
    [
        ((640, 480), ImageInput(height=64, width=64), Region(0, 0, 640, 480)),
        ((512, 256), CROPPED, Region(144, 16, 224, 224)),
        ((512, 512), CROPPED, Region(32, 32, 448, 448)),
        ((100, 60), ImageInput(resize="none", multiple_of=32), Region(0, 0, 128, 64)),
        (
            (10, 10),
            ImageInput(height=12, width=12, resize="shorter-side", resize_to=10),
            Region(-1, -1, 12, 12),
        ),
    ],
)
def test_the_part_that_a_model_saw(
    size: tuple[int, int], contract: ImageInput, region: Region
) -> None:
    assert seen_region(size, contract) == region


def test_the_region_is_where_the_pixels_come_from() -> None:
    """A white spot of the picture is in the model's input where the region says."""
    pixels = np.zeros((300, 500, 3), np.uint8)
    pixels[100:140, 320:360] = 255
    image = Image.fromarray(pixels)
    region = seen_region(image.size, CROPPED)
    seen = np.argwhere(to_model_input(image, CROPPED)[0] > 127)
    down, across = seen.min(0) / 224
    assert region.top + down * region.height == pytest.approx(100, abs=2)
    assert region.left + across * region.width == pytest.approx(320, abs=2)


def test_drawings_have_the_form_of_the_picture() -> None:
    image = Image.new("RGB", (3000, 1500), (100, 100, 100))
    values = np.array([[0.0, 1.0], [0.0, 0.0]], np.float32)
    grey, overlay = draw(image, values, Region(0, 0, 3000, 1500))
    assert grey.size == overlay.size == (1024, 512)
    assert (grey.mode, overlay.mode) == ("L", "RGB")
    assert grey.getpixel((1020, 3)) == 255
    assert grey.getpixel((3, 500)) == 0
    # Half the picture, half the colour.
    assert overlay.getpixel((1020, 3)) == (114, 50, 50)
    assert overlay.getpixel((3, 500)) == (50, 50, 114)
    assert Image.open(BytesIO(png(overlay))).size == (1024, 512)


def test_what_the_model_did_not_see_stays() -> None:
    image = Image.new("RGB", (60, 30), (10, 20, 30))
    grey, overlay = draw(image, np.ones((3, 3), np.float32), Region(15, 0, 30, 30))
    assert overlay.getpixel((14, 10)) == overlay.getpixel((45, 10)) == (10, 20, 30)
    assert grey.getpixel((14, 10)) == grey.getpixel((45, 10)) == 0
    assert grey.getpixel((15, 0)) == grey.getpixel((44, 29)) == 255


def test_a_region_beyond_the_edges() -> None:
    image = Image.new("RGB", (10, 10))
    values = np.array([[0.0, 0.0], [0.0, 1.0]], np.float32)
    grey, _ = draw(image, values, Region(-5, -5, 20, 20))
    assert grey.size == (10, 10)
    assert grey.getpixel((9, 9)) > grey.getpixel((0, 0))


def test_a_picture_of_one_line() -> None:
    image = Image.new("RGB", (100_000, 1))
    region = seen_region(image.size, CROPPED)
    grey, _ = draw(image, np.ones((7, 7), np.float32), region)
    assert grey.size == (1024, 1)


def test_the_colours() -> None:
    colours = jet(np.array([0.0, 0.25, 0.5, 0.75, 1.0], np.float32))
    expected = [[0, 0, 0.5], [0, 0.5, 1], [0.5, 1, 0.5], [1, 0.5, 0], [0.5, 0, 0]]
    np.testing.assert_allclose(colours, expected)
