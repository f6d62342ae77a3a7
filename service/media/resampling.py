"""Resizing as tensor libraries and OpenCV do it: each pixel mixed from four, without the low-pass filter
with which Pillow makes pictures smaller."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def scaled_window(
    pixels: NDArray[np.uint8],
    whole: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """Return the window of `size` at `corner` of `pixels` [H, W, 3] scaled to `whole`, as planes.

    Only the window is computed, however long the frame. Each pixel is mixed from the four next to its
    place; edges are repeated.
    """
    columns, right, across = _places(pixels.shape[1], whole[0], corner[0], size[0])
    rows, below, down = _places(pixels.shape[0], whole[1], corner[1], size[1])
    across, down = across[None, :, None], down[:, None, None]
    mixed = [
        pixels[row[:, None], columns[None]] * (1 - across)
        + pixels[row[:, None], right[None]] * across
        for row in (rows, below)
    ]
    result = np.rint(mixed[0] * (1 - down) + mixed[1] * down).astype(np.uint8)
    return np.ascontiguousarray(result.transpose(2, 0, 1))


def _places(
    side: int, scaled: int, first: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return, for pixels `first` ... of a side scaled to `scaled`, both neighbours and the second one's share."""
    place = (np.arange(first, first + count) + 0.5) * (side / scaled) - 0.5
    place = np.clip(place, 0, side - 1)
    before = place.astype(np.int64)
    after = np.minimum(before + 1, side - 1)
    return before, after, (place - before).astype(np.float32)
