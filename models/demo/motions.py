"""Short clips of one moving shape: which motion it is, and in which direction, is the label.

The shapes, colours and backgrounds are those of `models.demo.shapes`. No single frame tells the label:
shapes start anywhere, in any size and tilt. A motion is a function of the share of the clip that has
passed, so that the same seed with more frames, or larger ones, is the same clip.

Split: seeds below `HELD_OUT` are for training, seeds from `HELD_OUT` on are for measuring.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.demo import shapes

__all__ = ["HELD_OUT", "LABELS", "clip", "clip_bytes", "frames", "mirrored", "motion"]

HELD_OUT = 10_000_000
LABELS = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "turns clockwise",
    "turns counter-clockwise",
    "grows",
    "shrinks",
    "blinks",
    "stands still",
)
_MIRRORED = {"left": "right", "right": "left", "clockwise": "counter-clockwise"}
_MIRRORED["counter-clockwise"] = "clockwise"


@dataclass(frozen=True, slots=True)
class Motion:
    """What one clip shows. Lengths are shares of the picture's side, angles radians (clockwise).

    `start` is the centre at the beginning, `way` how far it goes; `turn`, `growth` (a factor) and `blinks`
    are what happens until the end.
    """

    label: int
    start: tuple[float, float]
    way: tuple[float, float]
    radius: float
    tilt: float
    turn: float
    growth: float
    blinks: float


def motion(seed: int) -> Motion:
    """Return the motion of clip `seed`; ten seeds in a row have ten different labels."""
    rng = np.random.default_rng([seed, 3])
    label = seed % len(LABELS)
    kind, _, direction = LABELS[label].partition(" ")
    radius = float(rng.uniform(0.15, 0.22))
    growth = 1.0
    if kind in ("grows", "shrinks"):
        growth = float(rng.uniform(1.6, 2.0))
        radius = float(rng.uniform(0.12, 0.16))
        if kind == "shrinks":
            radius, growth = radius * growth, 1 / growth
    # All shapes drift a little, so that standing still is no clue of its own.
    way = rng.uniform(-0.03, 0.03, size=2)
    if kind == "moves":
        axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[direction]
        way[axis] = sign * rng.uniform(0.3, 0.5)
    largest = radius * max(1.0, growth)
    # Both ends of the way leave the whole shape in the picture.
    low = np.maximum(largest, largest - way)
    high = np.minimum(1 - largest, 1 - largest - way)
    start = rng.uniform(low, np.maximum(low, high))
    turn = float(rng.uniform(-0.08, 0.08))
    if kind == "turns":
        turn = float(rng.uniform(1.1, 1.7)) * (1 if direction == "clockwise" else -1)
    return Motion(
        label=label,
        start=(float(start[0]), float(start[1])),
        way=(float(way[0]), float(way[1])),
        radius=radius,
        tilt=float(rng.uniform(0.0, 2 * math.pi)),
        turn=turn,
        growth=growth,
        blinks=float(rng.uniform(2.0, 3.5)) if kind == "blinks" else 0.0,
    )


def frames(seed: int, count: int, size: int = 64) -> Iterator[np.ndarray]:
    """Draw the `count` frames of clip `seed`, RGB uint8 [size, size, 3].

    Raises ValueError for fewer than two frames or a side below 16 pixels.
    """
    if count < 2 or size < 16:
        raise ValueError(f"{count} frames of {size} pixels; the least are 2 frames of 16 pixels")
    made = motion(seed)
    rng = np.random.default_rng([seed, 4])
    turning = LABELS[made.label].startswith("turns")
    choices = shapes.SHAPES[1:] if turning else shapes.SHAPES  # no one sees a circle turn
    shape, colour = str(rng.choice(choices)), str(rng.choice(shapes.COLOURS))
    paint, background = shapes.paint(rng, colour), shapes.background(rng, size)
    noise, shake = rng.uniform(0.0, 6.0), rng.uniform(0.0, 0.006)
    for index in range(count):
        passed = index / (count - 1)
        moved = _outline(made, shape, passed) + rng.normal(0.0, shake, size=2)
        alpha = _coverage(moved * size, size) * _visible(made, passed)
        picture = background * (1.0 - alpha) + paint * alpha
        picture = picture + rng.normal(0.0, noise, size=picture.shape)
        yield np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def clip(seed: int, count: int = 8, size: int = 64) -> tuple[np.ndarray, int]:
    """Return the frames of clip `seed`, uint8 [count, size, size, 3], and the index of its label."""
    return np.stack(list(frames(seed, count, size))), motion(seed).label


def clip_bytes(seed: int, seconds: float = 2.0, fps: int = 15, size: int = 128) -> bytes:
    """Return clip `seed` as MP4 (H.264, yuv420p); `size` must be even. Raises ValueError."""
    import av  # what serves a network needs the labels only

    if size % 2:
        raise ValueError(f"size is {size}; it must be even")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # One thread: the same bytes on every machine.
        options = {"crf": "18", "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for picture in frames(seed, round(seconds * fps), size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def mirrored(label: int) -> int:
    """Return the label of a clip seen in a mirror: left and right, and the turns, change places."""
    kind, _, direction = LABELS[label].partition(" ")
    return LABELS.index(f"{kind} {_MIRRORED.get(direction, direction)}".rstrip())


def _outline(made: Motion, shape: str, passed: float) -> np.ndarray:
    angle = made.tilt + made.turn * passed
    cos, sin = math.cos(angle), math.sin(angle)
    # y points down, so that this turns clockwise to the eye.
    turned = shapes.OUTLINES[shape] @ np.array([[cos, sin], [-sin, cos]])
    centre = np.array(made.start) + passed * np.array(made.way)
    return made.radius * made.growth**passed * turned + centre


def _visible(made: Motion, passed: float) -> float:
    return float(math.cos(2 * math.pi * made.blinks * passed) >= 0) if made.blinks else 1.0


def _coverage(outline: np.ndarray, size: int) -> np.ndarray:
    """Return the share of every pixel inside the outline, float32 [size, size, 1]."""
    points = tuple((float(x), float(y)) for x, y in outline)
    drawn = shapes.DrawnObject("", "", (0.0, 0.0), (0.0, 0.0, 0.0, 0.0), points)
    return shapes.coverage(drawn, size)[..., None]
