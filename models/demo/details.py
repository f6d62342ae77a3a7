"""Drawn pictures full of detail, and the same made small: what a super-resolution network learns from and is measured on.

Objects, strokes, rings and words before a muted background: edges in every direction and of every width, which
interpolation blurs and a network can learn to draw sharply.

Split: seeds below `HELD_OUT` are for training, seeds from `HELD_OUT` on are for measuring.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from models.demo import shapes

__all__ = ["HELD_OUT", "draw", "small"]

HELD_OUT = shapes.HELD_OUT
_SUPERSAMPLING = 4
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def draw(seed: int, size: int = 96) -> np.ndarray:
    """Draw picture number `seed`: RGB uint8 [size, size, 3]. Raises ValueError for a side below 16 pixels."""
    rng = np.random.default_rng([seed, 8])
    scene, _ = shapes.draw(seed, size, objects=int(rng.integers(1, 5)))
    fine = size * _SUPERSAMPLING
    picture = Image.fromarray(scene).resize((fine, fine), Image.Resampling.BICUBIC)
    brush = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(4, 9))):
        (_stroke, _ring, _word, _stripes)[rng.integers(4)](brush, rng, size)
    return np.asarray(picture.reduce(_SUPERSAMPLING))


def small(picture: np.ndarray, scale: int) -> np.ndarray:
    """Return a picture [H, W, 3] made `scale` times smaller, as pictures usually are: by bicubic interpolation."""
    height, width = picture.shape[:2]
    reduced = Image.fromarray(picture).resize(
        (width // scale, height // scale), Image.Resampling.BICUBIC
    )
    return np.asarray(reduced)


def _stroke(brush: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> None:
    brush.line(_points(rng, size, 2), _colour(rng), _width(rng))


def _ring(brush: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> None:
    (x, y), radius = _points(rng, size, 1)[0], rng.uniform(3, size / 4) * _SUPERSAMPLING
    brush.ellipse((x - radius, y - radius, x + radius, y + radius), None, _colour(rng), _width(rng))


def _word(brush: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> None:
    font = ImageFont.load_default(rng.uniform(8, 20) * _SUPERSAMPLING)
    text = "".join(rng.choice(list(_LETTERS), int(rng.integers(2, 7))))
    brush.text(_points(rng, size, 1)[0], text, _colour(rng), font, anchor="mm")


def _stripes(brush: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> None:
    (x, y), (dx, dy) = _points(rng, size, 1)[0], rng.normal(size=2)
    colour, width, length = _colour(rng), _width(rng), rng.uniform(6, size / 3) * _SUPERSAMPLING
    across = np.array([dx, dy]) / np.hypot(dx, dy)
    along = across[::-1] * (1, -1) * length / 2
    for number in range(int(rng.integers(3, 8))):
        centre = np.array([x, y]) + across * number * 2 * width
        brush.line([*(centre - along), *(centre + along)], colour, width)


def _points(rng: np.random.Generator, size: int, count: int) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in rng.uniform(0, size * _SUPERSAMPLING, (count, 2))]


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    return red, green, blue


def _width(rng: np.random.Generator) -> int:
    return int(rng.uniform(1, 4) * _SUPERSAMPLING)
