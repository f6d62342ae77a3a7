"""Masks of single objects: from a coarse grid over a box to pixels of the picture, and to COCO's run lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Instance:
    """The pixels of one object: bool [h, w], and where their upper left corner lies in the picture."""

    pixels: NDArray[np.bool_]
    left: int
    top: int

    @property
    def area(self) -> int:
        return int(self.pixels.sum())


def paste(grid: NDArray[np.uint8], box: Box, size: tuple[int, int]) -> Instance:
    """Return the pixels of a picture of `size` (width, height) where `grid`, spread over `box`, is at least one half.

    `grid` [h, w] holds probabilities, 255 is 1; its cells' centres lie evenly in the box, between them
    it is interpolated, and beyond the outermost ones it falls to zero. `box` is in pixels.
    """
    left, top = (max(0, int(np.floor(edge)) - 1) for edge in box[:2])
    right, bottom = (
        min(side, int(np.ceil(edge)) + 1) for edge, side in zip(box[2:], size, strict=True)
    )
    across = _weights(grid.shape[1], box[0], box[2], left, right)
    down = _weights(grid.shape[0], box[1], box[3], top, bottom)
    spread = down @ (grid.astype(np.float32) / 255.0) @ across.T
    return Instance(spread >= 0.5, left, top)


def run_lengths(instance: Instance, size: tuple[int, int]) -> str:
    """Return the compressed run lengths of an object in a picture of `size` (width, height).

    Only its own box is looked at, however large the picture is.
    """
    width, height = size
    columns = instance.pixels.T
    bounded = np.zeros((columns.shape[0], columns.shape[1] + 2), np.int8)
    bounded[:, 1:-1] = columns
    steps = np.diff(bounded, axis=1)
    # Runs in order of columns, as places in the picture counted column by column.
    starts, ends = (
        (column + instance.left) * height + row + instance.top
        for column, row in (np.nonzero(steps == 1), np.nonzero(steps == -1))
    )
    # A run that reaches the lower edge goes on at the top of the next column.
    joined = starts[1:] == ends[:-1]
    starts = starts[np.concatenate(([True], ~joined))] if len(starts) else starts
    ends = ends[np.concatenate((~joined, [True]))] if len(ends) else ends
    edges = np.concatenate(([0], np.stack((starts, ends), 1).ravel(), [width * height]))
    counts = np.diff(edges).tolist()
    if counts[-1] == 0 and len(counts) > 1:  # The last pixel is the object's.
        counts.pop()
    packed: dict[str, bytes] = coco.frPyObjects(
        {"size": [height, width], "counts": counts}, height, width
    )
    return packed["counts"].decode()


def _weights(cells: int, start: float, end: float, first: int, last: int) -> NDArray[np.float32]:
    """Return how much of each cell of a side from `start` to `end` is in each of the pixels `first` to `last`."""
    extent = max(end - start, 1e-6)
    place = (np.arange(first, last, dtype=np.float64) + 0.5 - start) / extent * cells - 0.5
    distance = np.abs(place[:, None] - np.arange(cells))
    return np.clip(1.0 - distance, 0.0, None).astype(np.float32)
