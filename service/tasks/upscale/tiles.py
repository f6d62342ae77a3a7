"""Large pictures in tiles: which pixels a network sees at a time, and how its results become one picture again.

The authors of DRCT do it in two ways, which are both here:

    context   their tests: tiles next to each other; each is computed with pixels around it, as far as there
              are any, and what became of those is cut away
    average   their script: the picture is continued by its mirror image, tiles overlap, and where several
              results lie on each other their mean is taken

Either way results are wanted from top to bottom, so that besides the finished picture only one row of tiles is
held in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Levels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Span:
    """Along one axis: the network sees the pixels `start` to `stop`, and of its result `first` to `last` are kept."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a picture, by rows and columns."""

    rows: Span
    columns: Span

    def cut(self, planes: Pixels) -> Pixels:
        """Return what the network sees of a picture [3, H, W]."""
        rows, columns = self.rows, self.columns
        return np.ascontiguousarray(planes[:, rows.start : rows.stop, columns.start : columns.stop])

    def kept(self, result: NDArray[np.generic], scale: int) -> NDArray[np.generic]:
        """Return what is kept of the network's result for it, [3, sh, sw]."""
        rows, columns = (
            slice((span.first - span.start) * scale, (span.last - span.start) * scale)
            for span in (self.rows, self.columns)
        )
        return result[:, rows, columns]


# Of height, width, side of a tile and overlap.
Cut = Callable[[int, int, int, int], list[Tile]]


def with_context(height: int, width: int, tile: int, context: int) -> list[Tile]:
    """Cut a picture into tiles of `tile` pixels that are seen with `context` pixels around them."""

    def spans(side: int) -> list[Span]:
        return [
            Span(max(0, start - context), min(side, end + context), start, end)
            for start in range(0, side, tile)
            for end in [min(side, start + tile)]
        ]

    return [Tile(rows, columns) for rows, columns in product(spans(height), spans(width))]


def overlapping(height: int, width: int, tile: int, overlap: int) -> list[Tile]:
    """Cut a picture into squares of `tile` pixels, or of its shorter side, that overlap by `overlap` or more.

    A picture that is no larger than a tile stays whole. Squares narrower than `overlap` overlap by half.
    """
    if max(height, width) <= tile:
        return [Tile(Span(0, height, 0, height), Span(0, width, 0, width))]
    square = min(tile, height, width)
    step = square - overlap if overlap < square else square - square // 2

    def spans(side: int) -> list[Span]:
        starts = [*range(0, side - square, step), side - square]
        return [Span(start, start + square, start, start + square) for start in starts]

    return [Tile(rows, columns) for rows, columns in product(spans(height), spans(width))]


def mirrored(planes: Pixels, multiple: int) -> Pixels:
    """Continue a picture [3, H, W] to the right and below by its mirror image, edges repeated.

    To the next multiple, so by at least one pixel. A picture narrower than what it lacks is mirrored again.
    """
    missing = [(0, multiple - side % multiple) for side in planes.shape[1:]]
    return np.pad(planes, ((0, 0), *missing), mode="symmetric")


class Mosaic:
    """Puts the results of tiles together, in the order of their rows; where they overlap the mean counts.

    `add` and `rest` return the rows that are finished, from the top on: float32 [3, n, `width`]. What lies
    outside of `height` and `width` is dropped.
    """

    def __init__(self, height: int, width: int) -> None:
        self._height, self._width = height, width
        self._first = 0
        self._sum = np.zeros((3, 0, width), np.float32)
        self._count = np.zeros((0, width), np.float32)

    def add(self, top: int, left: int, result: NDArray[np.generic]) -> Levels:
        """Add a result [3, h, w]; no later one begins above its `top`."""
        finished = self._finish(top)
        inside: Levels = result[:, : self._height - top, : self._width - left].astype(np.float32)
        bottom, right = top + inside.shape[1], left + inside.shape[2]
        missing = bottom - self._first - len(self._count)
        if missing > 0:
            self._sum = np.pad(self._sum, ((0, 0), (0, missing), (0, 0)))
            self._count = np.pad(self._count, ((0, missing), (0, 0)))
        rows, columns = slice(top - self._first, bottom - self._first), slice(left, right)
        self._sum[:, rows, columns] += inside
        self._count[rows, columns] += 1
        return finished

    def rest(self) -> Levels:
        """Return the rows that were still open."""
        return self._finish(self._height)

    def _finish(self, row: int) -> Levels:
        done = min(row, self._height) - self._first
        finished: Levels = self._sum[:, :done] / self._count[:done]
        if not done:
            return finished
        self._first += done
        self._sum, self._count = self._sum[:, done:].copy(), self._count[done:].copy()
        return finished


def rounded(levels: Levels) -> Pixels:
    """Return levels [3, h, w] of 0..255 and around as rows of pixels [h, w, 3]."""
    pixels: Pixels = np.rint(levels.clip(0, 255)).astype(np.uint8).transpose(1, 2, 0)
    return pixels
