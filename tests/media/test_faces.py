"""Boxes, crops by area, and how sharp a face is."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from skimage import data

from service.media.faces import (
    DETECTION_SIDE,
    Box,
    crop_face,
    detection_input,
    pixel_box,
    sharpness,
)

SIDES = st.integers(1, 60)
BOXES = st.builds(
    lambda left, top, width, height: Box(left, top, left + width, top + height),
    st.integers(0, 50),
    st.integers(0, 50),
    SIDES,
    SIDES,
)


def area_mean(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Average the exact rectangle of every target pixel, one by one, in fractions."""
    source_height, source_width = pixels.shape

    def shares(at: int, target: int, source: int) -> list[tuple[int, Fraction]]:
        low, high = Fraction(at * source, target), Fraction((at + 1) * source, target)
        inside = ((i, min(high, i + 1) - max(low, i)) for i in range(source))
        return [(i, share / (high - low)) for i, share in inside if share > 0]

    return np.array(
        [
            [
                float(
                    sum(
                        int(pixels[i, j]) * down * across
                        for i, down in shares(y, height, source_height)
                        for j, across in shares(x, width, source_width)
                    )
                )
                for x in range(width)
            ]
            for y in range(height)
        ]
    )


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_crop_is_resized_by_exact_area_larger_and_smaller(
    source_height: int, source_width: int, height: int, width: int
) -> None:
    pixels = np.random.default_rng(source_height * 13 + source_width).integers(
        0, 256, (source_height, source_width, 3), np.uint8
    )
    box = Box(0, 0, source_width, source_height)
    got = crop_face(Image.fromarray(pixels), box, height, width)
    assert got.shape == (3, height, width)
    for channel in range(3):
        expected = area_mean(pixels[..., channel], height, width)
        # A hair beside a half may round either way.
        assert np.abs(got[channel] - expected).max() <= 0.5 + 1e-3


def test_a_crop_is_exactly_the_box() -> None:
    photo = Image.fromarray(data.astronaut())
    got = crop_face(photo, Box(180, 70, 260, 190), 120, 80)
    assert np.array_equal(got, data.astronaut()[70:190, 180:260].transpose(2, 0, 1))


@given(BOXES, BOXES)
def test_iou_is_that_of_the_pixels(one: Box, other: Box) -> None:
    canvas = np.zeros((2, 112, 112), bool)
    for layer, box in zip(canvas, (one, other), strict=True):
        layer[box.top : box.bottom, box.left : box.right] = True
    expected = (canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum()
    assert one.iou(other) == pytest.approx(expected)
    assert one.iou(one) == 1.0


@given(st.lists(st.floats(-0.5, 1.5), min_size=4, max_size=4), SIDES, SIDES)
def test_boxes_stay_inside_the_picture(edges: list[float], width: int, height: int) -> None:
    box = pixel_box(np.array(edges, np.float32), (width, height))
    assert 0 <= min(box.left, box.right) <= max(box.left, box.right) <= width
    assert 0 <= min(box.top, box.bottom) <= max(box.top, box.bottom) <= height
    assert box.area >= 0


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1920, 1080), (360, 640)),
        ((1080, 1920), (640, 360)),
        ((50, 40), (40, 50)),
        ((9000, 1), (1, 640)),
    ],
)
def test_detection_sees_at_most_its_longest_side(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert DETECTION_SIDE == 640
    got = detection_input(Image.new("RGB", size))
    assert got.shape == (1, 3, *expected)
    assert got.dtype == np.uint8


def test_blur_lowers_sharpness() -> None:
    photo = Image.fromarray(data.astronaut()).crop((170, 50, 280, 200))
    box = Box(0, 0, *photo.size)
    sharp = sharpness(crop_face(photo, box, 112, 112))
    soft = sharpness(crop_face(photo.filter(ImageFilter.GaussianBlur(4)), box, 112, 112))
    assert soft < sharp / 10


def test_sharpness_by_hand() -> None:
    face = np.zeros((3, 3, 4), np.uint8)
    face[:, 1, 1] = 100
    # Two inner pixels: the Laplacian is -400 on the point and 100 beside it; its variance 250 squared.
    assert sharpness(face) == pytest.approx(62_500, rel=1e-4)
    assert sharpness(np.zeros((3, 2, 2), np.uint8)) == 0.0
