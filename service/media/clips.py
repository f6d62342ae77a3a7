"""Frames of a video as the networks of clips take them: scaled, and a square cut out at one or three places.

The released code of those networks scales tensors, without the low-pass filter with which Pillow
makes pictures smaller, and cuts by other roundings than torchvision's; so do these functions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.media.resampling import scaled_window
from service.triton.cards import ImageInput

CROPS = (1, 3)


def cut_frame(image: Image.Image, contract: ImageInput, crops: int) -> list[NDArray[np.uint8]]:
    """Return `crops` squares of an RGB frame, each uint8 [3, height, width].

    One crop is the centre of the frame with its shorter side at the card's `resize_to`. Three crops
    are the two ends and the centre of the longer side, with the shorter side as long as the crop.
    """
    if contract.height is None or contract.width is None or not contract.is_fixed:
        raise ValueError("the frames' card states no fixed size")
    size = (contract.width, contract.height)
    pixels = np.asarray(image, np.uint8)
    if contract.resize == "squash":
        part = scaled_window(pixels, size, (0, 0), size)
        return [part] * crops
    shorter = min(size) if crops > 1 else contract.resize_to or min(size)
    whole = scaled_size(*image.size, shorter)
    return [
        scaled_window(pixels, whole, corner, size) for corner in crop_corners(whole, size, crops)
    ]


def scaled_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Return (width, height) with the shorter side at `shorter`, the longer one truncated."""
    if width < height:
        return shorter, int(height / width * shorter)
    return int(width / height * shorter), shorter


def crop_corners(
    whole: tuple[int, int], size: tuple[int, int], crops: int
) -> list[tuple[int, int]]:
    """Return left and top of each crop of `size` (width, height) out of `whole`; of three, along the longer side."""
    left, top = (-((crop - side) // 2) for side, crop in zip(whole, size, strict=True))
    if crops == 1:
        return [(left, top)]
    if whole[1] > whole[0]:
        return [(left, 0), (left, top), (left, whole[1] - size[1])]
    return [(0, top), (left, top), (whole[0] - size[0], top)]
