"""Coloured shapes on muted backgrounds: labelled pictures drawn from a seed.

A scene holds one to four objects, each one of six shapes in one of six colours. It knows its
label, its caption, every box and mask, and how the objects lie to each other, so that
classification, detection, segmentation and generation from text can all be trained on it.

Split: seeds below `HELD_OUT` are for training, seeds from `HELD_OUT` on are for measuring.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

__all__ = [
    "COLOURS",
    "HELD_OUT",
    "LABELS",
    "OUTLINES",
    "SHAPES",
    "DrawnObject",
    "Relation",
    "Scene",
    "article",
    "background",
    "batch",
    "coverage",
    "draw",
    "label",
    "paint",
]

SHAPES = ("circle", "square", "triangle", "star", "pentagon", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
LABELS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
HELD_OUT = 10_000_000

Side = Literal["left of", "right of", "above", "below"]

# Hue in degrees, lowest saturation and value of each colour; hues lie at least 24 degrees apart.
_COLOUR_HSV = {
    "red": (358.0, 0.78, 0.72),
    "orange": (27.0, 0.82, 0.88),
    "yellow": (52.0, 0.72, 0.86),
    "green": (135.0, 0.62, 0.50),
    "blue": (220.0, 0.70, 0.68),
    "purple": (283.0, 0.58, 0.52),
}
_HUE_JITTER = 5.0
_TILT = math.radians(20.0)
_SUPERSAMPLING = 4
# Distance of centre and edge, as a share of the picture's side, by number of objects.
_RADII = {1: (0.20, 0.38), 2: (0.15, 0.22), 3: (0.11, 0.16), 4: (0.10, 0.14)}


@dataclass(frozen=True, slots=True)
class DrawnObject:
    """One object. Coordinates are pixels, x to the right, y down, (0, 0) the picture's corner.

    `outline` is the closed polygon that was filled; `box` (x0, y0, x1, y1) encloses it tightly.
    """

    shape: str
    colour: str
    centre: tuple[float, float]
    box: tuple[float, float, float, float]
    outline: tuple[tuple[float, float], ...]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Relation:
    """Object number `subject` lies on this side of object number `target`."""

    subject: int
    side: Side
    target: int


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows. `size` is its side in pixels; objects never overlap."""

    size: int
    objects: tuple[DrawnObject, ...]

    @property
    def label(self) -> int:
        """Index into `LABELS` of the first object."""
        return LABELS.index(self.objects[0].name)

    @property
    def relations(self) -> tuple[Relation, ...]:
        """The relation of every pair of objects, the earlier one as subject."""
        return tuple(
            Relation(i, _side(self.objects[i], self.objects[j]), j)
            for i in range(len(self.objects))
            for j in range(i + 1, len(self.objects))
        )

    @property
    def caption(self) -> str:
        """ "a red circle", "a red circle left of a blue square", or a list of three and more."""
        names = [f"{article(o.name)} {o.name}" for o in self.objects]
        if len(names) == 1:
            return names[0]
        if len(names) == 2:
            return f"{names[0]} {self.relations[0].side} {names[1]}"
        return f"{', '.join(names[:-1])} and {names[-1]}"

    def mask(self, index: int) -> np.ndarray:
        """Return where object `index` covers at least half of a pixel: bool [size, size]."""
        return coverage(self.objects[index], self.size) >= 0.5


def article(name: str) -> str:
    """Return the indefinite article of a colour or label."""
    return "an" if name[0] in "aeiou" else "a"


def label(shape: str, colour: str) -> int:
    """Return the index into `LABELS`. Raises ValueError for an unknown shape or colour."""
    return LABELS.index(f"{colour} {shape}")


def draw(
    seed: int, size: int = 64, objects: int | None = 1, variety: float = 1.0
) -> tuple[np.ndarray, Scene]:
    """Draw scene number `seed`.

    `size`: side of the picture in pixels, at least 16. `objects`: 1 to 4, or None for one or two
    by chance. `variety`: share, 0 to 1, of the spread of sizes, tilts and (of one or two objects)
    places; at 0 all are upright, alike in size, and one object is in the middle. The same scene at
    another size is the same picture, scaled. Returns RGB uint8 [size, size, 3] and the scene.
    Raises ValueError for a size or number out of range.
    """
    if size < 16:
        raise ValueError(f"size is {size}; the smallest is 16")
    if objects is not None and objects not in _RADII:
        raise ValueError(f"objects is {objects}; it must be between 1 and {max(_RADII)}")
    rng = np.random.default_rng([seed, 0 if objects is None else objects])
    count = objects or int(rng.integers(1, 3))
    scene = Scene(size, _place(rng, count, size, variety))
    colours = [paint(rng, o.colour) for o in scene.objects]
    canvas = background(rng, size)
    for drawn, colour in zip(scene.objects, colours, strict=True):
        alpha = coverage(drawn, size)[..., None]
        canvas = canvas * (1.0 - alpha) + colour * alpha
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), scene


def batch(
    first: int, count: int, size: int = 64, objects: int | None = 1
) -> tuple[np.ndarray, list[Scene]]:
    """Draw the scenes of `count` consecutive seeds: uint8 [count, size, size, 3] and the scenes."""
    drawn = [draw(seed, size, objects) for seed in range(first, first + count)]
    return np.stack([pixels for pixels, _ in drawn]), [scene for _, scene in drawn]


def coverage(drawn: DrawnObject, size: int) -> np.ndarray:
    """Return the share of every pixel that the object covers: float32 [size, size] in 0..1."""
    fine = size * _SUPERSAMPLING
    mask = Image.new("L", (fine, fine))
    # Pillow fills pixels whose centres lie inside; its coordinates are pixel centres.
    points = [(x * _SUPERSAMPLING - 0.5, y * _SUPERSAMPLING - 0.5) for x, y in drawn.outline]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return np.asarray(mask.reduce(_SUPERSAMPLING), dtype=np.float32) / 255.0


def _side(subject: DrawnObject, target: DrawnObject) -> Side:
    dx = subject.centre[0] - target.centre[0]
    dy = subject.centre[1] - target.centre[1]
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _place(
    rng: np.random.Generator, count: int, size: int, variety: float
) -> tuple[DrawnObject, ...]:
    """Choose different objects and places where they neither overlap nor leave the picture."""
    labels = rng.choice(len(LABELS), size=count, replace=False)
    low, high = _RADII[count]
    while True:
        radii = rng.uniform(low, high, size=count)
        centres = rng.uniform(radii[:, None] + 0.02, 0.98 - radii[:, None], size=(count, 2))
        if _apart(centres, radii):
            break
    tilts = rng.uniform(-_TILT, _TILT, size=count) * variety
    if variety < 1.0:
        radii = (low + high) / 2 + variety * (radii - (low + high) / 2)
        if count <= 2:
            calm = _calm_centres(centres)
            centres = calm + variety * (centres - calm)
    return tuple(
        _object(LABELS[k], centre * size, radius * size, tilt)
        for k, centre, radius, tilt in zip(labels, centres, radii, tilts, strict=True)
    )


def _calm_centres(centres: np.ndarray) -> np.ndarray:
    """Return the middle for one object; for two, places in one row or column that keep their relation."""
    calm = np.full_like(centres, 0.5)
    if len(centres) == 2:
        apart = centres[1] - centres[0]
        axis = int(np.abs(apart).argmax())
        calm[:, axis] += np.array([-0.25, 0.25]) * np.sign(apart[axis])
    return calm


def _apart(centres: np.ndarray, radii: np.ndarray) -> bool:
    """Whether circles keep a gap and, for two of them, one direction clearly dominates."""
    for i in range(len(radii)):
        for j in range(i + 1, len(radii)):
            dx, dy = np.abs(centres[i] - centres[j])
            if math.hypot(dx, dy) < radii[i] + radii[j] + 0.03:
                return False
            if len(radii) == 2 and max(dx, dy) < 2.0 * min(dx, dy):
                return False
    return True


def _object(name: str, centre: np.ndarray, radius: float, tilt: float) -> DrawnObject:
    colour, shape = name.split(" ")
    cos, sin = math.cos(tilt), math.sin(tilt)
    outline = radius * OUTLINES[shape] @ np.array([[cos, sin], [-sin, cos]]) + centre
    x0, y0 = (float(v) for v in outline.min(axis=0))
    x1, y1 = (float(v) for v in outline.max(axis=0))
    points = tuple((float(x), float(y)) for x, y in outline)
    return DrawnObject(
        shape, colour, (float(centre[0]), float(centre[1])), (x0, y0, x1, y1), points
    )


def _regular(corners: int, turn: float = -90.0) -> np.ndarray:
    angles = np.radians(turn) + 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    points = _regular(10)
    points[1::2] *= 0.42
    return points


def _cross() -> np.ndarray:
    arm, end = 0.30, 0.92
    quarter = np.array([(-arm, -end), (arm, -end), (arm, -arm)])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


# Outlines in a circle of radius 1 around (0, 0); the circle itself as 72 corners.
OUTLINES = {
    "circle": 0.94 * _regular(72),
    "square": _regular(4, turn=-135.0),
    "triangle": _regular(3),
    "star": _star(),
    "pentagon": _regular(5),
    "cross": _cross(),
}


def paint(rng: np.random.Generator, colour: str) -> np.ndarray:
    """Return one of the tones, float32 [3] in 0..255, that a colour's name stands for."""
    hue, saturation, value = _COLOUR_HSV[colour]
    rgb = colorsys.hsv_to_rgb(
        (hue + rng.uniform(-_HUE_JITTER, _HUE_JITTER)) % 360.0 / 360.0,
        min(1.0, saturation + rng.uniform(0.0, 0.18)),
        min(1.0, value + rng.uniform(0.0, 0.14)),
    )
    return np.array(rgb, dtype=np.float32) * 255.0


def _muted(rng: np.random.Generator) -> np.ndarray:
    """Return a grey or a pastel: saturation at most 0.12, so it is never an object's colour."""
    rgb = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.0, 0.12), rng.uniform(0.30, 0.97))
    return np.array(rgb, dtype=np.float32) * 255.0


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return float32 [size, size, 3] in 0..255: plain, a linear gradient, or soft noise."""
    kind = rng.choice(["plain", "gradient", "noise"])
    base = _muted(rng)
    if kind == "plain":
        return np.broadcast_to(base, (size, size, 3)).astype(np.float32)
    if kind == "gradient":
        angle = rng.uniform(0.0, 2 * np.pi)
        ramp = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        along = ramp[None, :] * math.cos(angle) + ramp[:, None] * math.sin(angle)
        share = np.clip(along / math.sqrt(2.0) * 2.0 + 0.5, 0.0, 1.0)[..., None]
        return base * (1.0 - share) + _muted(rng) * share
    coarse = rng.normal(0.0, rng.uniform(4.0, 12.0), size=(16, 16)).astype(np.float32)
    cloud = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    return base + cloud[..., None]
