"""Drawn tiles of stained tissue, one kind each: violet nuclei on a rose ground. Drawings, from which no medicine can be learned.

What tells the kinds apart is both local (size and form of nuclei) and global (how they lie to each other).

Split: seeds below `HELD_OUT` are for training, seeds from `HELD_OUT` on are for measuring.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["HELD_OUT", "KINDS", "draw"]

HELD_OUT = 10_000_000
KINDS = ("glands", "inflammation", "muscle", "necrosis", "tumour")
_SUPERSAMPLING = 2


def draw(seed: int, size: int = 64) -> tuple[np.ndarray, int]:
    """Draw tile number `seed`: RGB uint8 [size, size, 3], and the index of its kind in `KINDS`.

    Another size is the same tile, scaled, but for the grain. Raises ValueError for a side below 16 pixels.
    """
    if size < 16:
        raise ValueError(f"size is {size}; the smallest is 16")
    rng = np.random.default_rng([seed, 6])
    kind = int(rng.integers(len(KINDS)))
    fine = size * _SUPERSAMPLING
    stain = rng.uniform(0.85, 1.15)
    ground = np.array([232, 190, 212]) + rng.normal(0, 7, 3)
    nucleus = np.array([105, 65, 140]) * rng.uniform(0.85, 1.15) + rng.normal(0, 7, 3)
    picture = Image.new("RGB", (fine, fine), _rgb(ground))
    brush = ImageDraw.Draw(picture)
    for x, y, long, short, angle, tone in _nuclei(KINDS[kind], rng, brush, ground, fine):
        shade = ground + (nucleus - ground) * min(1.0, tone * stain)
        brush.polygon(_ellipse(x * fine, y * fine, long * fine, short * fine, angle), _rgb(shade))
    pixels = np.asarray(picture.reduce(_SUPERSAMPLING), dtype=np.float32)
    pixels = pixels + rng.normal(0, rng.uniform(1, 8), pixels.shape)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), kind


def _nuclei(
    kind: str, rng: np.random.Generator, brush: ImageDraw.ImageDraw, ground: np.ndarray, fine: int
) -> list[tuple[float, ...]]:
    """Return (x, y, half axes, angle, tone) of the nuclei, lengths as shares of the side; draws what lies below them."""
    found: list[tuple[float, ...]] = []
    if kind == "glands":
        # Nuclei in rings around an empty middle.
        for cx, cy in _scattered(rng, int(rng.integers(3, 5)), 0.36):
            radius = rng.uniform(0.13, 0.17)
            inner = _ellipse(cx * fine, cy * fine, radius * fine, radius * fine, 0)
            brush.polygon(inner, _rgb(ground + 0.7 * (250 - ground)))
            count = round(radius * 95)
            turn = rng.uniform(0, 2 * math.pi)
            for k in range(count):
                angle = turn + 2 * math.pi * (k + rng.uniform(-0.15, 0.15)) / count
                x, y = cx + radius * math.cos(angle), cy + radius * math.sin(angle)
                found.append((x, y, 0.032, 0.020, angle, rng.uniform(0.7, 0.95)))
    elif kind == "inflammation":
        # Many small, round, dark ones.
        for x, y in rng.uniform(0, 1, (int(rng.integers(60, 100)), 2)):
            radius = rng.uniform(0.018, 0.024)
            found.append((x, y, radius, radius, 0.0, rng.uniform(0.9, 1.1)))
    elif kind == "muscle":
        # Long fibres side by side, with spindles along them.
        along = rng.uniform(0, math.pi)
        cos, sin = math.cos(along), math.sin(along)
        for offset in np.arange(-0.75, 0.75, rng.uniform(0.07, 0.1)):
            x, y = 0.5 - sin * offset, 0.5 + cos * offset
            ends = [(x - cos) * fine, (y - sin) * fine, (x + cos) * fine, (y + sin) * fine]
            tone = rng.uniform(0.84, 0.93)
            brush.line(ends, _rgb(ground * np.array([1.0, tone, tone])), max(1, fine // 32))
        for x, y in rng.uniform(0, 1, (int(rng.integers(14, 24)), 2)):
            angle = along + rng.normal(0, 0.08)
            found.append((x, y, rng.uniform(0.05, 0.07), 0.011, angle, rng.uniform(0.7, 0.9)))
    elif kind == "necrosis":
        # Pale shadows of nuclei, and crumbs.
        for x, y in rng.uniform(0, 1, (int(rng.integers(10, 20)), 2)):
            radius = rng.uniform(0.03, 0.045)
            found.append((x, y, radius, radius, 0.0, rng.uniform(0.14, 0.24)))
        for x, y in rng.uniform(0, 1, (int(rng.integers(30, 60)), 2)):
            radius = rng.uniform(0.007, 0.011)
            found.append((x, y, radius, radius, 0.0, rng.uniform(0.6, 1.0)))
    else:
        # Large ones, crowded, each of its own size, form and darkness.
        for x, y in rng.uniform(0, 1, (int(rng.integers(22, 34)), 2)):
            long = rng.uniform(0.04, 0.085)
            short = long * rng.uniform(0.55, 0.95)
            found.append((x, y, long, short, rng.uniform(0, math.pi), rng.uniform(0.45, 1.0)))
    return found


def _scattered(rng: np.random.Generator, count: int, apart: float) -> list[tuple[float, float]]:
    """Return up to `count` places that keep the distance `apart`."""
    places: list[tuple[float, float]] = []
    for x, y in rng.uniform(0.08, 0.92, (60, 2)):
        if len(places) < count and all(math.hypot(x - a, y - b) >= apart for a, b in places):
            places.append((float(x), float(y)))
    return places


def _ellipse(
    x: float, y: float, long: float, short: float, angle: float
) -> list[tuple[float, float]]:
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    u, v = long * np.cos(turn), short * np.sin(turn)
    cos, sin = math.cos(angle), math.sin(angle)
    return list(
        zip((x + u * cos - v * sin).tolist(), (y + u * sin + v * cos).tolist(), strict=True)
    )


def _rgb(colour: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in np.clip(np.rint(colour), 0, 255))
