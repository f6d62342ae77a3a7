"""Drawn skin with one dark, irregular lesion or none, and where it is. Drawings, from which no medicine can be learned.

Beside the lesion, or without one, there may be hairs, freckles and the shadow of a lens, which are to be left out.

Split: seeds below `HELD_OUT` are for training, seeds from `HELD_OUT` on are for measuring.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from models.demo.drawn import kept

__all__ = ["COUNT", "HELD_OUT", "SIZE", "draw", "training"]

HELD_OUT = 10_000_000
SIZE = 64
# Of a whole training set.
COUNT = 2_000
_SUPERSAMPLING = 4
# Every so manieth picture has no lesion.
_HEALTHY = 10


def draw(seed: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw picture number `seed`: RGB `uint8` [size, size, 3], and the lesion's pixels, bool [size, size].

    Another size is the same picture, scaled, but for the grain. Raises ValueError for a side below 16 pixels.
    """
    if size < 16:
        raise ValueError(f"size is {size}; the smallest is 16")
    rng = np.random.default_rng([seed, 7])
    skin = np.array([222, 178, 156]) * rng.uniform(0.72, 1.08) + rng.normal(0, 6, 3)
    canvas = skin + _cloud(rng, size, 5)[..., None] * rng.uniform(2, 7)
    for _ in range(int(rng.integers(0, 4))):
        spot = _blob(rng, size, rng.uniform(0.012, 0.03), rng.uniform(0.05, 0.95, 2), 0.1)
        canvas = canvas + spot[..., None] * (0.82 * skin - canvas)
    lesion = np.zeros((size, size), np.float32)
    if seed % _HEALTHY:
        radius = rng.uniform(0.10, 0.30)
        centre = rng.uniform(radius + 0.04, 0.96 - radius, 2)
        lesion = _blob(rng, size, radius, centre, rng.uniform(0.08, 0.25))
        brown = skin * rng.uniform(0.30, 0.62) * np.array([1.0, rng.uniform(0.75, 0.95), 0.8])
        tone = brown + _cloud(rng, size, 14)[..., None] * rng.uniform(3, 12)
        canvas = canvas + lesion[..., None] * (tone - canvas)
    for _ in range(int(rng.integers(0, 5))):
        hair = _hair(rng, size)
        canvas = canvas * (1 - 0.75 * hair[..., None])
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    distance = np.sqrt(ramp[:, None] ** 2 + ramp[None, :] ** 2)
    canvas = canvas * (1 - rng.uniform(0, 0.5) * distance[..., None] ** 2)
    canvas = canvas + rng.normal(0, rng.uniform(1, 6), canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), lesion >= 0.5


def training(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `count` of training set `seed`: pictures `uint8` [count, 64, 64, 3], lesions bool [count, 64, 64].

    The whole set is drawn once and kept in the user's cache.
    """
    first = (seed * COUNT) % (HELD_OUT - COUNT)

    def made() -> dict[str, np.ndarray]:
        drawn = [draw(number) for number in range(first, first + count)]
        return {
            "pictures": np.stack([pixels for pixels, _ in drawn]),
            "lesions": np.stack([lesion for _, lesion in drawn]),
        }

    whole = count == COUNT
    found = kept(f"lesions-{seed}", (sys.modules[__name__],), made) if whole else made()
    return found["pictures"], found["lesions"]


def _blob(
    rng: np.random.Generator, size: int, radius: float, centre: np.ndarray, roughness: float
) -> np.ndarray:
    """Return the share of each pixel that an irregular blob covers."""
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    edge = np.ones_like(angles)
    for wave in range(2, 6):
        edge += roughness / wave * rng.normal() * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
    edge = radius * np.clip(edge, 0.5, 1.3)
    stretch = rng.uniform(0.75, 1.0)
    x = centre[0] + edge * np.cos(angles)
    y = centre[1] + edge * stretch * np.sin(angles)

    def outline(brush: ImageDraw.ImageDraw, fine: int) -> None:
        brush.polygon([*zip(x * fine, y * fine, strict=True)], fill=255)

    return _filled(size, outline)


def _hair(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return the share of each pixel that a thin curved line covers."""
    start, end, bend = rng.uniform(0, 1, 2), rng.uniform(0, 1, 2), rng.normal(0, 0.15, 2)
    along = np.linspace(0, 1, 16)[:, None]
    points = start * (1 - along) + end * along + bend * (4 * along * (1 - along))
    width = rng.uniform(0.006, 0.014)

    def line(brush: ImageDraw.ImageDraw, fine: int) -> None:
        brush.line(
            [(x * fine, y * fine) for x, y in points], fill=255, width=max(1, round(width * fine))
        )

    return _filled(size, line)


def _filled(size: int, drawing: Callable[[ImageDraw.ImageDraw, int], None]) -> np.ndarray:
    fine = size * _SUPERSAMPLING
    mask = Image.new("L", (fine, fine))
    drawing(ImageDraw.Draw(mask), fine)
    return np.asarray(mask.reduce(_SUPERSAMPLING), np.float32) / 255


def _cloud(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Return smooth noise of deviation about 1, `cells` to a side."""
    coarse = rng.normal(0, 1, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
