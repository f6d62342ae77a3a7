"""Drawn chest X-rays with findings that do not exclude each other. Drawings, from which no medicine can be learned.

Seen from the front: two dark lungs behind ribs, between them spine and heart, below them the diaphragm. Each finding is
there or not, by chance and independent of the others, and changes what is drawn as its name says.

Split: seeds below `HELD_OUT` are for training, seeds from `HELD_OUT` on are for measuring.
"""

from __future__ import annotations

import numpy as np

__all__ = ["FINDINGS", "HELD_OUT", "draw"]

HELD_OUT = 10_000_000
FINDINGS = ("Cardiomegaly", "Effusion", "Consolidation", "Mass", "Pneumothorax")
_SHARE = 0.35


def draw(seed: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw X-ray number `seed`: grey as RGB uint8 [size, size, 3], and which findings it has, float32 [5] of 0 and 1.

    Another size is the same picture, scaled, but for the grain. Raises ValueError for a side below 16 pixels.
    """
    if size < 16:
        raise ValueError(f"size is {size}; the smallest is 16")
    rng = np.random.default_rng([seed, 5])
    has = rng.uniform(size=len(FINDINGS)) < _SHARE
    heart, effusion, consolidation, mass, pneumothorax = has
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = ramp[None, :], ramp[:, None]

    body = rng.uniform(0.62, 0.74)
    centre = 0.5 + rng.uniform(-0.03, 0.03)
    soft = rng.uniform(0.02, 0.035)
    lungs, sides = np.zeros((size, size), np.float32), []
    top, bottom = 0.44 + rng.uniform(-0.03, 0.03), rng.uniform(0.30, 0.34)
    for sign in (-1, 1):
        middle = centre + sign * rng.uniform(0.205, 0.225)
        width = rng.uniform(0.135, 0.155)
        side = _inside(x, y, middle, top, width, bottom, soft)
        # The diaphragm: a dome that cuts the lung from below.
        dome = top + 0.24 + 0.9 * (x - middle) ** 2 / width * 0.5
        side = side * _step((dome - y) / soft)
        sides.append((side, middle, width))
        lungs = np.maximum(lungs, side)
    air = rng.uniform(0.16, 0.26)
    picture = body + (air - body) * lungs

    ribs = 0.5 + 0.5 * np.cos(2 * np.pi * (y * rng.uniform(8, 9.5) + 3.2 * (x - centre) ** 2))
    ribs_seen = ribs**3 * rng.uniform(0.05, 0.09)
    vessels = _cloud(rng, size, 10) * 0.025
    picture = picture + lungs * (ribs_seen + vessels)

    spine = np.exp(-(((x - centre) / 0.035) ** 2))
    picture = picture + rng.uniform(0.05, 0.1) * spine
    # Cardiomegaly: a heart wider than half of the chest.
    half = rng.uniform(0.20, 0.235) if heart else rng.uniform(0.115, 0.145)
    drawn = _inside(x, y, centre + rng.uniform(0.025, 0.04), top + 0.17, half, 0.13, soft)
    picture = picture + (rng.uniform(0.70, 0.76) - picture) * drawn

    # In any order of lungs: a finding is on one side, by chance.
    if pneumothorax:
        side, middle, width = sides[int(rng.integers(2))]
        # The lung has come off the wall: no vessels outside its edge, a thin bright line along it.
        sign = np.sign(middle - centre)
        edge = (x - (middle + sign * width * rng.uniform(0.1, 0.3))) * sign / soft
        outside = _step(edge) * side * _step((top + 0.18 - y) / soft)
        picture = picture + (0.04 - picture) * outside
        picture = picture + 0.30 * np.exp(-((edge / 0.6) ** 2)) * side * _step(
            (top + 0.18 - y) / soft
        )
    if consolidation:
        side, middle, width = sides[int(rng.integers(2))]
        where = _inside(
            x,
            y,
            middle + rng.uniform(-0.3, 0.3) * width,
            top + rng.uniform(-0.16, 0.04),
            0.11,
            0.1,
            0.3,
        )
        patchy = np.clip(0.75 + 0.35 * _cloud(rng, size, 12), 0, 1)
        picture = picture + (0.60 - picture) * where * side * patchy
    if mass:
        side, middle, width = sides[int(rng.integers(2))]
        radius = rng.uniform(0.04, 0.06)
        spot = _inside(
            x,
            y,
            middle + rng.uniform(-0.4, 0.4) * width,
            top + rng.uniform(-0.18, 0.08),
            radius,
            radius,
            0.015,
        )
        picture = picture + (0.85 - picture) * spot * side
    if effusion:
        side, middle, width = sides[int(rng.integers(2))]
        # Fluid: white from below, its surface rising towards the wall.
        sign = np.sign(middle - centre)
        surface = top + rng.uniform(0.06, 0.13) - 0.55 * (x - middle) * sign
        picture = picture + (0.72 - picture) * side * _step((y - surface) / soft)

    picture = rng.uniform(0.9, 1.1) * picture + rng.uniform(-0.04, 0.04)
    picture = picture + rng.normal(0.0, rng.uniform(0.005, 0.025), (size, size))
    grey = np.clip(np.rint(255 * picture), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2), has.astype(np.float32)


def _step(x: np.ndarray) -> np.ndarray:
    """A soft edge: 0 far below zero, 1 far above."""
    return 1 / (1 + np.exp(-np.clip(4 * x, -30, 30)))


def _inside(
    x: np.ndarray, y: np.ndarray, cx: float, cy: float, width: float, height: float, soft: float
) -> np.ndarray:
    """An ellipse with soft edges, 1 inside; `width` and `height` are its half axes."""
    distance = np.sqrt(((x - cx) / width) ** 2 + ((y - cy) / height) ** 2)
    return _step((1 - distance) * min(width, height) / soft)


def _cloud(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise of deviation about 1, `cells` to a side: the same at each size."""
    waves = np.zeros((size, size), np.float32)
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size
    count = 8
    for _ in range(count):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        rate = np.pi * cells * rng.uniform(0.5, 1.0)
        waves += np.sin(
            rate * (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]) + phase
        )
    return waves * np.sqrt(2 / count)
