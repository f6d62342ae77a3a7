"""Frames as networks of clips take them, against the tensor operations of the released code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from service.media.clips import crop_corners, cut_frame, scaled_size
from service.triton.cards import ImageInput

CARD = ImageInput(height=32, width=32, resize="shorter-side", resize_to=40)


def reference(image: Image.Image, shorter: int, size: int, place: int) -> np.ndarray:
    """Scale and cut as SlowFast's test transforms do: `place` 0, 1, 2 along the longer side."""
    frames = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    height, width = frames.shape[2:]
    if width < height:
        scaled = (math.floor(height / width * shorter), shorter)
    else:
        scaled = (shorter, math.floor(width / height * shorter))
    frames = torch.nn.functional.interpolate(frames, scaled, mode="bilinear", align_corners=False)
    top, left = (math.ceil((side - size) / 2) for side in scaled)
    if scaled[0] > scaled[1]:
        top = (0, top, scaled[0] - size)[place]
    else:
        left = (0, left, scaled[1] - size)[place]
    return frames[0, :, top : top + size, left : left + size].numpy()


@pytest.mark.parametrize("shape", [(120, 90), (90, 120), (33, 57), (64, 64), (25, 19), (40, 40)])
@pytest.mark.parametrize("crops", [1, 3])
def test_crops_are_those_of_the_released_code(shape: tuple[int, int], crops: int) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (*shape, 3), np.uint8)
    image = Image.fromarray(noise)
    found = cut_frame(image, CARD, crops)
    assert len(found) == crops
    for place, pixels in enumerate(found):
        assert (pixels.dtype, pixels.shape) == (np.uint8, (3, 32, 32))
        shorter, which = (40, 1) if crops == 1 else (32, place)
        assert np.abs(pixels - reference(image, shorter, 32, which)).max() <= 0.51


def test_corners_by_hand() -> None:
    assert crop_corners((57, 32), (32, 32), 3) == [(0, 0), (13, 0), (25, 0)]
    assert crop_corners((32, 57), (32, 32), 3) == [(0, 0), (0, 13), (0, 25)]
    assert crop_corners((57, 40), (32, 32), 1) == [(13, 4)]
    assert scaled_size(1920, 1080, 256) == (455, 256)
    assert scaled_size(1080, 1920, 224) == (224, 398)


def test_a_squashed_frame_has_one_crop() -> None:
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (20, 50, 3), np.uint8))
    squash = ImageInput(height=16, width=16)
    first, second, third = cut_frame(image, squash, 3)
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)
    with pytest.raises(ValueError, match="no fixed size"):
        cut_frame(image, ImageInput(resize="none"), 1)


def test_a_frame_as_long_as_a_thread_costs_no_more() -> None:
    image = Image.new("RGB", (200_000, 4), "red")
    found = cut_frame(image, CARD, 3)
    assert all((pixels[0] == 255).all() and not pixels[1:].any() for pixels in found)
