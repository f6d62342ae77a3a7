"""Masks of labelled pixels in the forms that programs and people take: COCO's run lengths and panoptic PNGs, polygons,
grey PNGs, colours over the picture."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

# Of ids; the larger type only where they need it.
Mask = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.int32]

# Drawings need not be larger than a screen.
_LONGEST_SIDE = 1024
# Successive multiples of this share of the circle are hues that lie far apart.
_GOLDEN = 0.618034
_OPACITY = 0.55


@dataclass(frozen=True, slots=True)
class Runs:
    """Where one id lies: COCO's compressed run lengths, with what follows from them.

    `box` is (left, top, right, bottom) in pixels, the last two exclusive.
    """

    rle: Mapping[str, Any]
    area: int
    box: tuple[int, int, int, int]


def narrow(mask: NDArray[np.int32]) -> Mask:
    """Return the mask in the smallest type that holds its ids."""
    largest = int(mask.max(initial=0))
    if largest < 2**8:
        return mask.astype(np.uint8)
    return mask.astype(np.uint16) if largest < 2**16 else mask


def enlarged(mask: Mask, size: tuple[int, int]) -> Mask:
    """Return the mask at (height, width), each pixel as the nearest one of `mask`."""
    if mask.shape == size:
        return mask
    rows, columns = (
        (np.arange(new) * old // new) for old, new in zip(mask.shape, size, strict=True)
    )
    taken: Mask = mask[rows[:, None], columns]
    return taken


def runs(mask: Mask, ids: Iterable[int]) -> dict[int, Runs]:
    """Return the runs of each of `ids` that is in `mask` [H, W], all in one pass over its pixels."""
    height, width = mask.shape
    pixels = mask.ravel(order="F")  # COCO counts down the columns.
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts = np.concatenate(([0], changes))
    ends = np.concatenate((changes, [pixels.size]))
    values = pixels[starts]
    order = np.argsort(values, kind="stable")
    first = np.searchsorted(values[order], np.arange(int(values.max()) + 2))
    found = {}
    for id in ids:
        own = order[first[id] : first[id + 1]] if id + 1 < len(first) else order[:0]
        if not own.size:
            continue
        # Lengths of zeros and ones in turn, zeros first.
        bounds = np.stack((starts[own], ends[own]), 1).ravel()
        counts = np.diff(bounds, prepend=0, append=pixels.size).tolist()
        if counts[-1] == 0:
            counts.pop()
        rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        left, top, across, down = (int(side) for side in coco.toBbox(rle))
        found[id] = Runs(
            {"size": [height, width], "counts": rle["counts"].decode()},
            int(coco.area(rle)),
            (left, top, left + across, top + down),
        )
    return found


def polygons(
    mask: Mask,
    id: int,
    box: tuple[int, int, int, int],
    scale: tuple[float, float] = (1.0, 1.0),
) -> list[list[list[tuple[float, float]]]]:
    """Return the outlines of `id`, which lies within `box`, as GeoJSON has them, in pixels of the mask times `scale`.

    A polygon is a list of rings, its outline first and then its holes; a ring is a list of (x, y) in pixels, the
    picture's corner at (0, 0), the first point again at the end. Outlines run half-way between pixels, their
    corners cut.
    """
    left, top, right, bottom = box
    inside = np.pad((mask[top:bottom, left:right] == id).astype(np.float32), 1)
    lines = contour_generator(z=inside, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    found = []
    # Points lie at the middle of pixels: half a pixel from their corners, and a pixel of padding before.
    for points, offsets in zip(*lines, strict=True):
        placed = ((points + np.array([left - 0.5, top - 0.5])) * np.array(scale)).round(2)
        rings = [placed[a:b] for a, b in pairwise(offsets)]
        found.append([[(float(x), float(y)) for x, y in _corners(ring)] for ring in rings])
    return found


def grey(mask: Mask) -> Image.Image:
    """Return the ids as the grey levels of a picture: 8 bits where they suffice, else 16.

    Raises ValueError for ids beyond 65,535.
    """
    if mask.dtype == np.int32:
        raise ValueError("ids beyond 65,535 are no grey levels")
    return Image.fromarray(np.ascontiguousarray(mask))


def panoptic(mask: Mask, first: int = 0) -> Image.Image:
    """Return COCO's panoptic picture: id + `first` = R + 256 G + 65536 B."""
    parts = (mask.astype(np.uint32) + np.uint32(first))[..., None] >> np.array(
        [0, 8, 16], np.uint32
    )
    return Image.fromarray((parts & 255).astype(np.uint8))


def levels(probabilities: NDArray[np.float32]) -> Image.Image:
    """Return values in 0..1 as grey levels from 0 to 255."""
    return Image.fromarray(np.rint(255 * probabilities.clip(0, 1)).astype(np.uint8))


def overlay(image: Image.Image, mask: Mask, ids: Iterable[int]) -> Image.Image:
    """Return the picture with each of `ids` in a colour of its own over it, edged in white.

    The longer side has 1024 pixels at most.
    """
    scale = min(1.0, _LONGEST_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    picture = np.asarray(image.resize(size, Image.Resampling.BOX), np.float32)
    small = enlarged(mask, size[::-1])
    colours = np.zeros((int(mask.max(initial=0)) + 1, 3), np.float32)
    drawn = np.zeros(len(colours), bool)
    for id in ids:
        colours[id], drawn[id] = colour(id), True
    shown = drawn[small]
    mixed = np.where(
        shown[..., None], (1 - _OPACITY) * picture + _OPACITY * colours[small], picture
    )
    edge = np.zeros(small.shape, bool)
    edge[:, 1:] |= small[:, 1:] != small[:, :-1]
    edge[1:] |= small[1:] != small[:-1]
    mixed[edge] = 255
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def colour(id: int) -> tuple[float, float, float]:
    """Return the colour, 0..255, in which an id is drawn."""
    red, green, blue = colorsys.hsv_to_rgb(id * _GOLDEN % 1, 0.75, 1.0 - 0.15 * (id % 3))
    return 255 * red, 255 * green, 255 * blue


def _corners(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a closed ring without the points on straight lines."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept = points[turns]
    return np.concatenate((kept, kept[:1]))
