"""Scenes of several drawn shapes, with what a detector has to find in them.

Every fifth scene is empty; the others hold one to four objects. Half of those to learn from are drawn at another
size, blurred or through JPEG, and scaled as the service does it.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from models.demo import shapes
from models.demo.drawn import kept

__all__ = ["HELD_OUT", "MOST", "SIZE", "Scenes", "draw", "training"]

SIZE = 96
MOST = 4
HELD_OUT = shapes.HELD_OUT


@dataclass(frozen=True)
class Scenes:
    """Pictures `uint8` [N, S, S, 3] and their objects, of which each has up to `MOST`.

    `boxes` float32 [N, MOST, 4] x0, y0, x1, y1 in pixels; `classes` int64 [N, MOST], -1 where there is no object;
    `owners` `uint8` [N, S, S]: number of the object that a pixel belongs to, from 1, or 0.
    """

    pictures: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    owners: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)


def draw(seed: int, size: int = SIZE) -> tuple[np.ndarray, tuple[shapes.DrawnObject, ...]]:
    """Draw scene number `seed`: RGB `uint8` [size, size, 3] and its objects, none of every fifth scene."""
    count = seed % (MOST + 1)
    if count:
        pixels, scene = shapes.draw(seed, size, count)
        return pixels, scene.objects
    canvas = shapes.background(np.random.default_rng([seed, MOST + 1]), size)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), ()


def training(seed: int, count: int) -> Scenes:
    """Return training set `seed` of `count` scenes, from the user's cache where they are there."""
    first = (seed * count) % (HELD_OUT - count)

    def drawn() -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        pictures = np.empty((count, SIZE, SIZE, 3), np.uint8)
        boxes = np.zeros((count, MOST, 4), np.float32)
        classes = np.full((count, MOST), -1, np.int64)
        owners = np.zeros((count, SIZE, SIZE), np.uint8)
        for k in range(count):
            # Scenes of one number of objects are not all of them degraded.
            worse = k // (MOST + 1) % 2
            pictures[k], objects = draw(first + k)
            if worse:
                pictures[k] = _degraded(first + k, rng)
            for number, one in enumerate(objects):
                boxes[k, number] = one.box
                classes[k, number] = shapes.LABELS.index(one.name)
                owners[k][shapes.coverage(one, SIZE) >= 0.5] = number + 1
        return {"pictures": pictures, "boxes": boxes, "classes": classes, "owners": owners}

    modules = (shapes, sys.modules[__name__])
    return Scenes(**kept(f"scenes-{seed}-{count}", modules, drawn))


def _degraded(seed: int, rng: np.random.Generator) -> np.ndarray:
    picture = Image.fromarray(draw(seed, int(rng.choice([96, 96, 128, 192])))[0])
    if rng.uniform() < 0.5:
        radius = rng.uniform(0.0, 1.2) * picture.width / SIZE
        picture = picture.filter(ImageFilter.GaussianBlur(radius))
    if rng.uniform() < 0.5:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(rng.integers(35, 96)))
        picture = Image.open(file)
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
