"""Drawing a map of evidence: which part of a picture a model saw, the map in grey, and in colour over it."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.media.images import centre, shorter_side_size
from service.triton.cards import ImageInput

# Maps are coarse: drawings need not be larger than a screen.
_LONGEST_SIDE = 1024


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a picture that a model saw, in the picture's pixels; it may reach beyond the edges."""

    left: float
    top: float
    width: float
    height: float


def seen_region(size: tuple[int, int], contract: ImageInput) -> Region:
    """Return which part of a picture of `size` (width, height) `to_model_input` gives to the model."""
    width, height = size
    if contract.resize in ("squash", "fit"):
        return Region(0.0, 0.0, width, height)
    if contract.resize == "none":
        step = contract.multiple_of
        return Region(0.0, 0.0, width + -width % step, height + -height % step)
    assert contract.height is not None
    assert contract.width is not None
    resize_to = contract.resize_to or min(contract.width, contract.height)
    across, down = shorter_side_size(width, height, resize_to)
    # The longer side is rounded down, so the scales of the two sides may differ a little.
    return Region(
        centre(across, contract.width) * width / across,
        centre(down, contract.height) * height / down,
        contract.width * width / across,
        contract.height * height / down,
    )


def draw(
    image: Image.Image, values: NDArray[np.float32], region: Region
) -> tuple[Image.Image, Image.Image]:
    """Return the map `values` [h, w], in 0..1, in grey and, half and half, in colour over the picture.

    Both have the picture's form, the longer side 1024 pixels at most. Between the positions of the map
    values are interpolated bilinearly; what the model did not see is black in the one and unchanged
    in the other.
    """
    scale = min(1.0, _LONGEST_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    window = (max(1, round(region.width * scale)), max(1, round(region.height * scale)))
    place = (round(region.left * scale), round(region.top * scale))
    grown = Image.fromarray(np.ascontiguousarray(values, np.float32)).resize(
        window, Image.Resampling.BILINEAR
    )
    spread = Image.new("F", size, -1.0)
    spread.paste(grown, place)
    evidence = np.asarray(spread)
    seen = evidence >= 0
    grey = np.where(seen, np.rint(255 * evidence.clip(0, 1)), 0).astype(np.uint8)
    picture = np.asarray(image.resize(size, Image.Resampling.BOX), np.float32)
    mixed = np.where(seen[..., None], 0.5 * picture + 127.5 * jet(evidence), picture)
    return Image.fromarray(grey), Image.fromarray(np.rint(mixed).astype(np.uint8))


def jet(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the colours [..., 3] in 0..1 of values in 0..1: dark blue over cyan and yellow to dark red."""
    peaks = np.array([3.0, 2.0, 1.0], np.float32)  # of red, green and blue, in quarters
    colours: NDArray[np.float32] = (1.5 - np.abs(4 * values[..., None] - peaks)).clip(0, 1)
    return colours


def png(image: Image.Image) -> bytes:
    """Return the picture as a PNG file."""
    file = BytesIO()
    image.save(file, "PNG", compress_level=4)
    return file.getvalue()
