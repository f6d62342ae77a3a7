"""Drawn faces: a person, a pose and a light become pixels a face detector takes for a face.

Everything is a field over the pixel grid in the head's own coordinates: u to the right, v down,
(0, 0) the middle of the head, 1 about half its height. Soft fields stand for shading; edges are
one pixel wide, so that no supersampling is needed. Colours are RGB in 0..1.
"""

from __future__ import annotations

import colorsys
import copy
import math
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

__all__ = [
    "Drawing",
    "Face",
    "Pose",
    "Scenery",
    "backdrop",
    "draw",
    "face",
    "scenery",
    "with_inner_face",
]

Colour = tuple[float, float, float]
Field = np.ndarray

_SKIN = np.array(
    [
        (0.96, 0.80, 0.69),
        (0.91, 0.72, 0.58),
        (0.83, 0.62, 0.47),
        (0.71, 0.50, 0.36),
        (0.56, 0.38, 0.27),
        (0.42, 0.28, 0.20),
    ]
)
_HAIR = (
    (0.09, 0.07, 0.06),
    (0.22, 0.13, 0.08),
    (0.40, 0.25, 0.13),
    (0.62, 0.46, 0.24),
    (0.78, 0.63, 0.38),
    (0.52, 0.22, 0.10),
    (0.60, 0.59, 0.58),
)
_IRIS = ((0.28, 0.16, 0.08), (0.40, 0.27, 0.12), (0.24, 0.42, 0.56), (0.28, 0.44, 0.30))


@dataclass(frozen=True, slots=True)
class Face:
    """What a person looks like. Lengths are in the head's coordinates."""

    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    width: float
    jaw: float
    hairline: float
    hair_length: float
    eye_distance: float
    eye_width: float
    eye_height: float
    brow_height: float
    brow_thickness: float
    brow_slope: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_thickness: float
    mouth_curve: float
    beard: float
    glasses: bool
    texture: int


@dataclass(frozen=True, slots=True)
class Pose:
    """How the head is held: middle and `scale` (pixels of one unit), `roll` in radians,
    `yaw` and `pitch` in -1..1, `blink` and `mouth` (how far closed, how far open) in 0..1."""

    x: float
    y: float
    scale: float
    roll: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    blink: float = 0.0
    mouth: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenery:
    """What is around the face: background, clothes, and the light's direction and strength."""

    wall: Colour
    shade: Colour
    clothes: Colour
    light: tuple[float, float, float]
    ambient: float
    clutter: np.ndarray = field(repr=False)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn picture, float32 [size, size, 3] in 0..1, and the head's coordinates of its pixels."""

    pixels: np.ndarray
    u: np.ndarray
    v: np.ndarray


def face(rng: np.random.Generator) -> Face:
    """Choose a person."""
    tone = rng.uniform(0.0, len(_SKIN) - 1.001)
    low, share = int(tone), tone % 1.0
    skin = _SKIN[low] * (1 - share) + _SKIN[low + 1] * share
    skin = np.clip(skin * rng.uniform(0.96, 1.04, size=3), 0.0, 1.0)
    lips = skin * np.array([0.86, 0.62, 0.62]) * rng.uniform(0.88, 1.05)
    return Face(
        skin=_colour(skin),
        hair=_colour(np.array(_HAIR[rng.integers(len(_HAIR))]) * rng.uniform(0.8, 1.15)),
        iris=_IRIS[rng.integers(len(_IRIS))],
        lips=_colour(lips),
        width=rng.uniform(0.72, 0.82),
        jaw=rng.uniform(0.10, 0.32),
        hairline=rng.uniform(-0.76, -0.60),
        hair_length=float(rng.choice([-0.1, 0.2, 1.0, 1.4])) + rng.uniform(0.0, 0.2),
        eye_distance=rng.uniform(0.31, 0.37),
        eye_width=rng.uniform(0.135, 0.17),
        eye_height=rng.uniform(0.060, 0.085),
        brow_height=rng.uniform(0.17, 0.23),
        brow_thickness=rng.uniform(0.026, 0.05),
        brow_slope=rng.uniform(-0.10, 0.22),
        nose_length=rng.uniform(0.34, 0.44),
        nose_width=rng.uniform(0.11, 0.17),
        mouth_width=rng.uniform(0.23, 0.32),
        mouth_thickness=rng.uniform(0.05, 0.085),
        mouth_curve=rng.uniform(-0.02, 0.07),
        beard=float(rng.choice([0.0, 0.0, 0.0, 0.25, 0.6])),
        glasses=bool(rng.uniform() < 0.2),
        texture=int(rng.integers(2**31)),
    )


def scenery(rng: np.random.Generator) -> Scenery:
    """Choose a background and a light."""
    hue = rng.uniform()
    wall = colorsys.hsv_to_rgb(hue, rng.uniform(0.05, 0.45), rng.uniform(0.35, 0.9))
    shade = colorsys.hsv_to_rgb(
        (hue + rng.uniform(-0.1, 0.1)) % 1.0, rng.uniform(0.05, 0.45), rng.uniform(0.2, 0.8)
    )
    clothes = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.1, 0.8), rng.uniform(0.15, 0.85))
    light = np.array([rng.uniform(-0.7, 0.7), rng.uniform(-0.8, -0.1), 1.0])
    light /= np.linalg.norm(light)
    return Scenery(
        wall=wall,
        shade=shade,
        clothes=clothes,
        light=_colour(light),
        ambient=rng.uniform(0.45, 0.7),
        clutter=rng.normal(0.0, rng.uniform(0.01, 0.05), size=(6, 6, 3)).astype(np.float32),
    )


def with_inner_face(whole: Face, inner: Face) -> Face:
    """Return `whole` with the eyes, brows, nose and mouth of `inner`, as a face swap would have it."""
    return replace(
        whole,
        iris=inner.iris,
        lips=inner.lips,
        eye_distance=inner.eye_distance,
        eye_width=inner.eye_width,
        eye_height=inner.eye_height,
        brow_height=inner.brow_height,
        brow_thickness=inner.brow_thickness,
        brow_slope=inner.brow_slope,
        nose_length=inner.nose_length,
        nose_width=inner.nose_width,
        mouth_width=inner.mouth_width,
        mouth_thickness=inner.mouth_thickness,
        mouth_curve=inner.mouth_curve,
        texture=inner.texture,
    )


def backdrop(around: Scenery, size: int) -> np.ndarray:
    """Return the background alone, float32 [size, size, 3]; it is the same in every frame."""
    ramp = np.linspace(0.0, 1.0, size, dtype=np.float32)
    share = (0.6 * ramp[:, None] + 0.4 * ramp[None, :])[..., None]
    wall, shade = np.float32(around.wall), np.float32(around.shade)
    planes = [
        np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC))
        for plane in around.clutter.transpose(2, 0, 1)
    ]
    return wall * (1.0 - share) + shade * share + np.stack(planes, axis=-1)


def draw(person: Face, pose: Pose, around: Scenery, background: np.ndarray) -> Drawing:
    """Draw one person before `background`, which `backdrop` made of the same scenery."""
    canvas = _Canvas(pose, background)
    canvas.behind(person, around)
    # Nothing of the head is farther from its middle.
    head = canvas.around(0.0, 0.0, 1.15, 1.35)
    head.head(person, around)
    head.eyes(person)
    head.nose(person)
    head.mouth(person, pose.mouth)
    head.hair(person, around)
    if person.glasses:
        head.glasses(person)
    pixels = np.ascontiguousarray(np.clip(canvas.pixels, 0.0, 1.0).transpose(1, 2, 0))
    return Drawing(pixels, canvas.u, canvas.v)


class _Canvas:
    """The pixels so far. `u`, `v` follow the head's outline; `a`, `b` its surface, turned by yaw and pitch."""

    def __init__(self, pose: Pose, background: np.ndarray) -> None:
        size = len(background)
        ramp = np.arange(size, dtype=np.float32) + 0.5
        x, y = (ramp[None, :] - pose.x) / pose.scale, (ramp[:, None] - pose.y) / pose.scale
        cos, sin = math.cos(pose.roll), math.sin(pose.roll)
        self.u: Field = x * cos + y * sin
        self.v: Field = y * cos - x * sin
        self.depth = np.sqrt(np.clip(1.0 - (self.u / 0.85) ** 2 - (self.v / 1.1) ** 2, 0.0, 1.0))
        self.a: Field = self.u - 0.22 * pose.yaw * self.depth
        self.b: Field = self.v - 0.16 * pose.pitch * self.depth
        self.pixel = 1.0 / pose.scale
        self.blink = pose.blink
        self.skin: Field = np.zeros_like(self.u)
        # Planes [3, h, w]: much faster to blend than pixels.
        self.pixels: Field = background.transpose(2, 0, 1).copy()

    def around(self, u: float, v: float, a: float, b: float) -> _Canvas:
        """Return the part that shows the surface within (a, b) of (u, v); it shares its pixels."""
        near = (np.abs(self.a - u) < a) & (np.abs(self.b - v) < b)
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if not len(rows):
            rows = columns = np.array([0, -1])
        part = copy.copy(self)
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        for name in ("u", "v", "a", "b", "depth", "skin", "pixels"):
            setattr(part, name, getattr(self, name)[..., *window])
        return part

    def paint(self, colour: Colour | Field, alpha: Field) -> None:
        if isinstance(colour, tuple):
            colour = np.float32(colour)[:, None, None]
        self.pixels += (colour - self.pixels) * alpha

    def shade(self, amount: Field) -> None:
        self.pixels *= 1.0 + amount

    def inside(self, distance: Field, softness: float = 0.0) -> Field:
        """Turn a signed distance (negative inside) into coverage with an edge of one pixel or softer."""
        return np.clip(0.5 - distance / (self.pixel + softness), 0.0, 1.0)

    def noise(self, seed: int, cells: tuple[int, int], at: tuple[Field, Field]) -> Field:
        """Smooth noise of deviation about 1, fixed to the given coordinates over -1.5..1.5."""
        grid = np.random.default_rng(seed).normal(size=cells).astype(np.float32)
        picture = Image.fromarray(grid).resize((96, 96), Image.Resampling.BICUBIC)
        columns = np.clip((at[0] + 1.5) * 32.0, 0, 95).astype(np.intp)
        rows = np.clip((at[1] + 1.5) * 32.0, 0, 95).astype(np.intp)
        return np.asarray(picture)[rows, columns]

    def behind(self, person: Face, around: Scenery) -> None:
        """Hair behind the head, neck, shoulders and ears."""
        u, v = self.u, self.v
        long = _ellipse(
            u, v - 0.5 * (person.hair_length - 1.0), 1.02, 0.5 * (person.hair_length + 1.35)
        )
        self.paint(_times(person.hair, 0.75), self.inside(long))
        self.paint(
            _times(person.skin, 0.72), self.inside(np.maximum(np.abs(u) - 0.36, 0.6 - v), 0.04)
        )
        shoulders = _ellipse(u, v - 2.45, 1.75, 1.05)
        self.paint(around.clothes, self.inside(shoulders))
        self.shade(-0.25 * self.inside(shoulders) * np.clip(np.abs(u) / 1.7, 0.0, 1.0))
        for side in (-1.0, 1.0):
            ear = _ellipse(u - side * (person.width + 0.02), v - 0.02, 0.10, 0.20)
            self.paint(_times(person.skin, 0.85), self.inside(ear))

    def head(self, person: Face, around: Scenery) -> None:
        """Skin in the light, with cheeks, eye sockets, brow ridge, chin and beard."""
        u, v, a, b = self.u, self.v, self.a, self.b
        lower = np.clip((v - 0.05) / 1.0, 0.0, 1.0)
        width = person.width * (1.0 - person.jaw * lower * lower * (3.0 - 2.0 * lower))
        self.outline = (np.sqrt((u / width) ** 2 + (v / 1.04) ** 2) - 1.0) * person.width
        self.skin = self.inside(self.outline)
        nx, ny, nz = a / 1.05, b / 1.35, 0.35 + self.depth
        length = np.sqrt(nx * nx + ny * ny + nz * nz)
        lit = (nx * around.light[0] + ny * around.light[1] + nz * around.light[2]) / length
        bright = around.ambient + (1.12 - around.ambient) * np.clip(lit, 0.0, 1.0)
        bright += 0.018 * self.noise(person.texture, (24, 24), (a, b))
        colour = np.float32(person.skin)[:, None, None] * bright
        cheeks = sum(_bump(a - s * 0.42, b - 0.24, 0.2, 0.16) for s in (-1.0, 1.0))
        colour = colour * (1.0 + cheeks * np.float32([0.06, -0.05, -0.05])[:, None, None])
        self.paint(colour, self.skin)
        sockets = sum(_bump(a - s * person.eye_distance, b + 0.15, 0.21, 0.12) for s in (-1.0, 1.0))
        ridge = _bump(a, b + 0.62, 0.45, 0.2)
        chin = _bump(a, b - 0.86, 0.2, 0.1)
        fold = _bump(a, b - 0.70, 0.18, 0.035)
        self.shade(self.skin * (0.07 * ridge + 0.06 * chin - 0.10 * fold - 0.20 * sockets))
        if person.beard:
            jaw = np.clip((b - 0.22 + 0.35 * (1 - np.abs(a) / 0.8)) / 0.2, 0.0, 1.0)
            bare = _bump(a, b - 0.52, 0.30, 0.10)
            grain = 1.0 + 0.08 * self.noise(person.texture + 1, (48, 48), (a, b))
            self.paint(
                person.hair,
                np.clip(self.skin * person.beard * jaw * (1 - bare) * grain, 0.0, 1.0)
                * self.inside(self.outline + 0.02, 0.1),
            )

    def eyes(self, person: Face) -> None:
        """Brows, eyeballs, irises, lids; `blink` lowers the upper lid."""
        for side in (-1.0, 1.0):
            part = self.around(side * person.eye_distance, -0.22, 0.30, 0.30)
            a = (part.a - side * person.eye_distance) * side
            b = part.b + 0.15
            height = person.eye_height * (1.0 - 0.92 * self.blink)
            bow = (a / person.eye_width) ** 2
            upper, lower = -height * (1.15 - 1.15 * bow), height * (0.85 - 0.85 * bow)
            opening = part.inside(np.maximum(upper - b, b - lower))
            round_eye = 1.0 - 0.35 * np.clip(bow, 0.0, 1.0)
            part.paint(
                np.float32([0.93, 0.91, 0.89])[:, None, None] * round_eye, opening * part.skin
            )
            iris = np.hypot(a, b + 0.008)
            part.paint(person.iris, opening * part.inside(iris - 0.068))
            part.paint((0.03, 0.03, 0.03), opening * part.inside(iris - 0.032))
            part.paint((1.0, 1.0, 1.0), opening * part.inside(np.hypot(a + 0.02, b + 0.03) - 0.015))
            near = part.inside(np.abs(a) - person.eye_width * 1.02, 0.03)
            part.paint(
                (0.10, 0.06, 0.05), 0.85 * near * part.inside(np.abs(b - upper) - 0.014, 0.01)
            )
            part.paint(
                _times(person.skin, 0.55),
                0.45 * near * part.inside(np.abs(b - lower) - 0.006, 0.02),
            )
            crease = upper - 0.05 - 0.02 * (1.0 - bow)
            part.shade(-0.22 * near * np.exp(-(((b - crease) / 0.02) ** 2)))
            arch = -person.brow_height - person.brow_slope * a + 0.9 * a * a - 0.01
            taper = person.brow_thickness * np.clip(1.15 - 1.6 * np.clip(a, -0.1, 0.5), 0.3, 1.2)
            brow = part.inside(np.abs(b - arch) - taper, 0.02) * part.inside(np.abs(a) - 0.21, 0.05)
            part.paint(_times(person.hair, 0.6), 0.85 * brow)

    def nose(self, person: Face) -> None:
        """Bridge, sides, tip, nostrils and the shadow below, all by shading."""
        tip = person.nose_length - 0.15
        part = self.around(0.0, tip - 0.05, 0.50, 0.60)
        a = part.a
        b = part.b - tip
        wide = person.nose_width
        part.shade(0.13 * _bump(a, b + 0.22, 0.045, 0.2))
        for side in (-1.0, 1.0):
            part.shade(-0.16 * _bump(a - side * wide * 0.75, b + 0.17, 0.05, 0.2))
            part.shade(-0.30 * _bump(a - side * wide * 1.08, b - 0.015, 0.03, 0.055))
            hole = _bump(a - side * wide * 0.5, b - 0.055, 0.042, 0.024)
            part.paint(_times(person.skin, 0.25), np.clip(1.1 * hole, 0.0, 0.9))
            part.shade(-0.10 * _bump(a - side * 0.27, b - 0.14, 0.05, 0.16))
        part.shade(0.16 * _bump(a, b + 0.01, 0.06, 0.05))
        part.shade(-0.20 * _bump(a, b - 0.10, 0.14, 0.04))

    def mouth(self, person: Face, opened: float) -> None:
        """Lips, the line between them, and the opening with teeth."""
        part = self.around(0.0, 0.60, 0.45, 0.35)
        a, b = part.a, part.b - 0.53
        share = np.clip(1.0 - (a / person.mouth_width) ** 2, 0.0, 1.0)
        line = b + person.mouth_curve * (a / person.mouth_width) ** 2 - 0.3 * person.mouth_curve
        gap = 0.11 * opened * share
        thick = person.mouth_thickness * np.sqrt(share)
        cupid = 0.35 * thick * np.exp(-((a / 0.05) ** 2))
        corners = part.inside(np.abs(a) - person.mouth_width)
        top = -0.4 * gap - thick * 0.85 + cupid
        bottom = gap + thick * 1.15
        lips = corners * part.inside(np.maximum(top - line, line - bottom), 0.012)
        part.paint(_times(person.lips, 0.92), 0.9 * lips)
        part.shade(0.16 * lips * _bump(a, line - gap - 0.6 * thick, 0.12, 0.03))
        hollow = corners * part.inside(np.maximum(-0.4 * gap - line, line - gap))
        hollow = hollow * np.clip(gap / (0.5 * part.pixel), 0.0, 1.0)
        part.paint((0.20, 0.06, 0.06), hollow)
        part.paint((0.90, 0.87, 0.82), hollow * part.inside(line - 0.25 * gap, 0.01))
        seam = np.exp(-(((line - 0.3 * gap) / 0.013) ** 2)) * corners * (1.0 - hollow)
        part.paint(_times(person.lips, 0.35), 0.8 * seam)
        part.shade(-0.16 * _bump(a, line - bottom - 0.05, 0.16, 0.035))

    def hair(self, person: Face, around: Scenery) -> None:
        """Hair over the forehead and temples, with strands."""
        u, v = self.u, self.v
        cap = _ellipse(u, v + 0.12, person.width + 0.14, 1.06)
        edge = person.hairline + 0.75 * u * u + 0.05 * np.sin(9.0 * u + person.texture % 7)
        temple = np.clip((np.abs(u) - person.width + 0.10) / 0.12, 0.0, 1.0)
        covered = v - (edge + 0.45 * temple * (1.0 + max(0.0, person.hair_length)))
        strands = self.noise(person.texture + 2, (5, 64), (u, v))
        light = 0.8 + 0.25 * np.clip(-v - 0.4, 0.0, 0.6) + 0.3 * around.light[0] * u
        colour = np.float32(person.hair)[:, None, None] * (light + 0.14 * strands)
        self.paint(np.clip(colour, 0.0, 1.0), self.inside(np.maximum(cap, covered), 0.03))

    def glasses(self, person: Face) -> None:
        """Two rims and a bridge."""
        part = self.around(0.0, -0.13, 0.75, 0.30)
        frame: Field | None = None
        for side in (-1.0, 1.0):
            a, b = part.a - side * person.eye_distance, part.b + 0.13
            rim = np.abs(_ellipse(a, b, 0.24, 0.19)) - 0.014
            frame = rim if frame is None else np.minimum(frame, rim)
        bridge = np.maximum(np.abs(part.b + 0.17) - 0.014, np.abs(part.a) - 0.12)
        assert frame is not None
        part.paint((0.08, 0.07, 0.07), 0.9 * part.inside(np.minimum(frame, bridge)))


def _ellipse(x: Field, y: Field, a: float, b: float) -> Field:
    """Signed distance to an ellipse, near enough for edges."""
    return (np.sqrt((x / a) ** 2 + (y / b) ** 2) - 1.0) * min(a, b)


def _bump(x: Field, y: Field, a: float, b: float) -> Field:
    return np.exp(-((x / a) ** 2) - (y / b) ** 2)


def _times(colour: Colour, factor: float) -> Colour:
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def _colour(rgb: np.ndarray) -> Colour:
    return (float(rgb[0]), float(rgb[1]), float(rgb[2]))
