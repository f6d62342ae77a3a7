"""Scenes of one to four drawn shapes with what a segmenter has to find: the class of each pixel, and which object's it is.

Classes are the colours, whatever the shape.

Split: as that of the shapes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from PIL import Image

from models.demo import shapes
from models.demo.drawn import kept

__all__ = ["CLASSES", "COUNT", "HELD_OUT", "SIZE", "Segmented", "draw", "drawn", "training"]

CLASSES = ("background", *shapes.COLOURS)
HELD_OUT = shapes.HELD_OUT
SIZE = 96
# Of a whole training set.
COUNT = 2_000
_MOST = 4


@dataclass(frozen=True)
class Segmented:
    """Pictures `uint8` [N, S, S, 3]; of each pixel its class, an index of `CLASSES`, and the number of its object,
    from 1 (0: background), both `uint8` [N, S, S]."""

    pictures: np.ndarray
    classes: np.ndarray
    numbers: np.ndarray


def draw(seed: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw scene number `seed`: RGB `uint8` [size, size, 3], classes and numbers `uint8` [size, size]."""
    pixels, scene = shapes.draw(seed, size, 1 + seed % _MOST)
    classes, numbers = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    for number, drawn in enumerate(scene.objects):
        inside = scene.mask(number)
        classes[inside] = CLASSES.index(drawn.colour)
        numbers[inside] = number + 1
    return pixels, classes, numbers


def drawn(first: int, count: int, size: int = SIZE) -> Segmented:
    """Draw the scenes of `count` consecutive seeds."""
    return Segmented(*(np.stack(part) for part in zip(*_each(first, count, size), strict=True)))


def training(seed: int, count: int) -> Segmented:
    """Return the first `count` scenes of training set `seed`; every second one was drawn larger and resized as the
    service does it.

    The whole set is drawn once and kept in the user's cache.
    """
    first = (seed * COUNT) % (HELD_OUT - COUNT)

    def made() -> dict[str, np.ndarray]:
        found = drawn(first, count)
        rng = np.random.default_rng(seed)
        for k in range(0, count, 2):
            larger = Image.fromarray(draw(first + k, int(rng.choice([128, 192, 256])))[0])
            found.pictures[k] = larger.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return vars(found)

    if count < COUNT:
        return Segmented(**made())
    return Segmented(**kept(f"segmented-{seed}", (shapes, sys.modules[__name__]), made))


def _each(first: int, count: int, size: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return [draw(seed, size) for seed in range(first, first + count)]
