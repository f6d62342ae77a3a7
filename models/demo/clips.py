"""Short clips of drawn faces, real or manipulated, labelled by construction.

A manipulated clip has its inner face replaced by another drawing of it: another person's eyes,
nose and mouth in the same pose, pasted with the traces that real face swaps leave (a blending
border, other noise, other colour, other sharpness, flicker from frame to frame). A real clip went
through the same camera, whose noise, blur and colour cast concern the whole picture, so that only
the difference between inner and outer face tells the two apart.

Split: seeds below `HELD_OUT` are for training, seeds from `HELD_OUT` on are for measuring.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageFilter

from models.demo import faces

__all__ = ["HELD_OUT", "TRACES", "Traces", "clip_bytes", "frames", "traces", "write_clip"]

HELD_OUT = 10_000_000
TRACES = ("border", "noise", "colour", "sharpness", "flicker")


@dataclass(frozen=True, slots=True)
class Traces:
    """What a manipulation left, each 0 (absent) or a strength of 0.5 to 1."""

    border: float = 0.0
    noise: float = 0.0
    colour: float = 0.0
    sharpness: float = 0.0
    flicker: float = 0.0


def traces(seed: int) -> Traces:
    """Return the traces of manipulated clip `seed`: two to four of them, never flicker alone."""
    rng = np.random.default_rng([seed, 2])
    chosen = rng.choice(4, size=int(rng.integers(2, 4)), replace=False)
    present = {TRACES[k]: float(rng.uniform(0.5, 1.0)) for k in chosen}
    if rng.uniform() < 0.4:
        present["flicker"] = float(rng.uniform(0.5, 1.0))
    return Traces(**present)


def frames(
    seed: int, manipulated: bool, count: int, fps: float = 15.0, size: int = 256
) -> Iterator[np.ndarray]:
    """Draw the `count` frames of clip `seed`, RGB uint8 [size, size, 3].

    The real and the manipulated clip of one seed show the same person, place and motion.
    """
    rng = np.random.default_rng([seed, 0])
    person, around = faces.face(rng), faces.scenery(rng)
    background = faces.backdrop(around, size)
    motion, camera = _Motion(rng, size), _Camera(rng)
    swap = _Swap(seed, person) if manipulated else None
    for index in range(count):
        drawing = faces.draw(person, motion.pose(index / fps), around, background)
        pixels = camera.optics(drawing.pixels)
        sensor = rng.normal(size=(size, size, 3)).astype(np.float32)
        if swap is None:
            pixels = camera.expose(pixels, sensor)
        else:
            other = faces.draw(swap.person, motion.pose(index / fps), around, background)
            pixels = swap.paste(camera, pixels, camera.optics(other.pixels), other, sensor)
        yield np.clip(np.rint(pixels * 255.0), 0, 255).astype(np.uint8)


def clip_bytes(
    seed: int,
    manipulated: bool,
    seconds: float = 2.0,
    fps: int = 15,
    size: int = 256,
    quality: int | None = None,
) -> bytes:
    """Return clip `seed` as MP4 (H.264, yuv420p).

    `size`: side in pixels, even, at least 128. `quality`: the encoder's constant rate factor, by
    default 16 to 24 as the seed has it. Raises ValueError for an odd or too small size, or for a
    clip without frames.
    """
    if size < 128 or size % 2:
        raise ValueError(f"size is {size}; it must be even and at least 128")
    count = round(seconds * fps)
    if count < 1:
        raise ValueError(f"{seconds} s at {fps} frames per second hold no frame")
    if quality is None:
        quality = int(np.random.default_rng([seed, 1]).integers(16, 25))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # One thread: the same bytes on every machine.
        options = {"crf": str(quality), "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for picture in frames(seed, manipulated, count, float(fps), size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def write_clip(
    path: Path,
    seed: int,
    manipulated: bool,
    seconds: float = 2.0,
    fps: int = 15,
    size: int = 256,
) -> None:
    """Write clip `seed` as an MP4 file; arguments and errors as for `clip_bytes`."""
    path.write_bytes(clip_bytes(seed, manipulated, seconds, fps, size))


class _Motion:
    """A head that sways, nods, blinks and talks: sums of slow sines with the seed's phases."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.size = size
        self.scale = size * rng.uniform(0.23, 0.31)
        self.middle = size * rng.uniform(0.42, 0.58), size * rng.uniform(0.42, 0.50)
        self.roll = rng.uniform(-0.16, 0.16)
        self.turn = rng.uniform(-0.8, 0.8), rng.uniform(-0.6, 0.6)
        self.rates = rng.uniform(0.15, 0.6, size=6)
        self.phases = rng.uniform(0.0, 2 * math.pi, size=6)
        self.blink = rng.uniform(0.0, 3.0), rng.uniform(2.0, 4.0)
        self.talks = rng.uniform() < 0.6

    def pose(self, time: float) -> faces.Pose:
        sway = [
            math.sin(2 * math.pi * float(r) * time + float(p))
            for r, p in zip(self.rates, self.phases, strict=True)
        ]
        first, period = self.blink
        since = abs((time - first + period / 2) % period - period / 2)
        syllables = abs(math.sin(2 * math.pi * 1.7 * time + float(self.phases[0])))
        return faces.Pose(
            x=self.middle[0] + 0.025 * self.size * sway[0],
            y=self.middle[1] + 0.02 * self.size * sway[1],
            scale=self.scale * (1.0 + 0.03 * sway[2]),
            roll=self.roll + 0.06 * sway[3],
            yaw=self.turn[0] + 0.3 * sway[4],
            pitch=self.turn[1] + 0.3 * sway[5],
            blink=max(0.0, 1.0 - since / 0.12),
            mouth=0.7 * syllables * max(0.0, sway[4]) if self.talks else 0.0,
        )


class _Camera:
    """Blur of the lens, colour cast and noise of the sensor; the same over the whole picture."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.blur = rng.uniform(0.0, 0.9)
        self.cast = rng.uniform(0.93, 1.07, size=3).astype(np.float32)
        self.noise = rng.uniform(0.004, 0.025)

    def optics(self, pixels: np.ndarray) -> np.ndarray:
        return _blurred(pixels, self.blur) * self.cast

    def expose(self, pixels: np.ndarray, sensor: np.ndarray) -> np.ndarray:
        return pixels + self.noise * sensor


class _Swap:
    """Another inner face and the traces of pasting it."""

    def __init__(self, seed: int, whole: faces.Face) -> None:
        self.rng = np.random.default_rng([seed, 3])
        self.traces = traces(seed)
        self.person = faces.with_inner_face(whole, faces.face(self.rng))
        tint = self.rng.normal(size=3).astype(np.float32)
        self.tint = tint / np.abs(tint).max()
        self.coarser = self.rng.uniform() < 0.5
        self.oval = self.rng.uniform(0.52, 0.62), self.rng.uniform(0.58, 0.70)
        self.noisier = self.rng.uniform() < 0.5
        self.rim = float(self.rng.choice([-0.28, 0.28]))

    def paste(
        self,
        camera: _Camera,
        outer: np.ndarray,
        inner: np.ndarray,
        drawing: faces.Drawing,
        sensor: np.ndarray,
    ) -> np.ndarray:
        """Blend `inner` into `outer` within an oval of the face; both went through the lens."""
        left = self.traces
        shake = left.flicker * self.rng.normal(size=4)
        if left.colour or left.flicker:
            gain = 1.0 + 0.22 * left.colour * self.tint + 0.05 * float(shake[0])
            inner = inner * np.float32(gain)
        if left.sharpness:
            inner = _resampled(inner, 1.0 + 2.4 * left.sharpness, self.coarser)
        noise = camera.noise
        if left.noise and self.noisier:
            noise = noise * (1.0 + 2.0 * left.noise) + 0.03 * left.noise
        elif left.noise:
            # Denoised, which costs detail as well.
            noise, inner = 0.0, _blurred(inner, 0.6 + 0.9 * left.noise)
        inner = inner + noise * sensor
        # A soft mask hides its edge; a border is a narrow one, with a rim of another brightness.
        softness = 0.16 - 0.13 * left.border
        u = drawing.u + 0.03 * float(shake[1])
        v = drawing.v - 0.14 + 0.03 * float(shake[2])
        radius = np.sqrt((u / self.oval[0]) ** 2 + (v / self.oval[1]) ** 2)
        share = np.clip((1.0 - radius) / softness + 0.5, 0.0, 1.0)[..., None]
        pixels = camera.expose(outer, sensor) * (1.0 - share) + inner * share
        if left.border:
            rim = np.exp(-(((radius - 1.0) / 0.045) ** 2))[..., None]
            pixels = pixels * (1.0 + self.rim * left.border * rim)
        return pixels


def _blurred(pixels: np.ndarray, radius: float) -> np.ndarray:
    if radius < 0.2:
        return pixels
    picture = Image.fromarray(np.rint(np.clip(pixels, 0.0, 1.0) * 255.0).astype(np.uint8))
    soft = picture.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(soft, dtype=np.float32) / 255.0


def _resampled(pixels: np.ndarray, factor: float, coarse: bool) -> np.ndarray:
    """Lose detail as a generator of lower resolution does: scaled down and up again, or blurred."""
    if not coarse:
        return _blurred(pixels, 0.7 * factor)
    picture = Image.fromarray(np.rint(np.clip(pixels, 0.0, 1.0) * 255.0).astype(np.uint8))
    side = round(picture.width / factor)
    small = picture.resize((side, side), Image.Resampling.BOX)
    large = small.resize(picture.size, Image.Resampling.BILINEAR)
    return np.asarray(large, dtype=np.float32) / 255.0
