"""The sets of drawn pictures that classifiers learn from and are measured on.

Half of those to learn from are drawn larger and scaled down, blurred, noisy or through JPEG, so that a
network also judges pictures that a generator made or a browser sent.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from models.demo import radiographs, shapes, tissue
from models.demo.drawn import kept

__all__ = ["RADIOGRAPHS", "SHAPES", "TISSUE", "HeldOut", "PictureSet", "degraded"]

# Draws picture `seed` at `size`: RGB uint8 [size, size, 3], and the index of its label or a 0 or 1 for each label.
Draw = Callable[[int, int], tuple[np.ndarray, int | np.ndarray]]


@dataclass(frozen=True)
class HeldOut:
    """Pictures no network was trained on, as drawn and degraded, uint8 [N, 64, 64, 3], and their labels [N] or [N, C]."""

    clean: np.ndarray
    degraded: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class PictureSet:
    """Pictures 64 x 64 by seed. `count` are for training; those for measuring start at seed `held_out_from`."""

    name: str
    draw: Draw
    module: ModuleType
    held_out_from: int
    count: int
    held_out_count: int = 1_000

    @lru_cache(maxsize=1)  # noqa: B019 - the sets are module constants
    def training(self, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return training set `seed`: pictures uint8 [count, 64, 64, 3], every second one degraded, and their labels."""
        first = (seed * self.count) % (self.held_out_from - self.count)

        def draw() -> dict[str, np.ndarray]:
            rng = np.random.default_rng(seed)
            pixels, labels = np.empty((count, 64, 64, 3), np.uint8), []
            for k in range(count):
                pixels[k], label = self.draw(first + k, 64)
                labels.append(label)
                if k % 2:
                    pixels[k] = degraded(self.draw, first + k, rng)
            return {"pixels": pixels, "labels": np.array(labels)}

        drawn = self._kept(f"{self.name}-{seed}", draw, whole=count == self.count)
        return drawn["pixels"], drawn["labels"]

    @lru_cache(maxsize=1)  # noqa: B019
    def held_out(self, count: int) -> HeldOut:
        """Return the first `count` pictures to measure on."""

        def draw() -> dict[str, np.ndarray]:
            rng = np.random.default_rng(self.held_out_from)
            seeds = range(self.held_out_from, self.held_out_from + count)
            drawn = [self.draw(seed, 64) for seed in seeds]
            return {
                "clean": np.stack([pixels for pixels, _ in drawn]),
                "degraded": np.stack([degraded(self.draw, seed, rng) for seed in seeds]),
                "truth": np.array([label for _, label in drawn]),
            }

        whole = count == self.held_out_count
        return HeldOut(**self._kept(f"{self.name}-held-out", draw, whole=whole))

    def _kept(
        self, name: str, draw: Callable[[], dict[str, np.ndarray]], *, whole: bool
    ) -> dict[str, np.ndarray]:
        # The few pictures of a trial are not worth keeping.
        return kept(name, (self.module, sys.modules[__name__]), draw) if whole else draw()


def degraded(draw: Draw, seed: int, rng: np.random.Generator) -> np.ndarray:
    """Draw picture `seed`, uint8 [64, 64, 3], and let it suffer as pictures do on their way to the service."""
    size = int(rng.choice([64, 64, 96, 128, 256]))
    picture = Image.fromarray(draw(seed, size)[0])
    if rng.uniform() < 0.5:
        radius = rng.uniform(0.0, 1.2) * size / 64
        picture = picture.filter(ImageFilter.GaussianBlur(radius))
    if rng.uniform() < 0.5:
        picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.88, 1.12))
        picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.85, 1.15))
    if rng.uniform() < 0.3:
        noise = rng.normal(0.0, rng.uniform(2.0, 12.0), size=(size, size, 3))
        noisy = np.asarray(picture, dtype=np.float64) + noise
        picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    if rng.uniform() < 0.5:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(rng.integers(35, 96)))
        picture = Image.open(file)
    return np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC))


def _shape(seed: int, size: int) -> tuple[np.ndarray, int]:
    pixels, scene = shapes.draw(seed, size)
    return pixels, scene.label


SHAPES = PictureSet("shapes", _shape, shapes, shapes.HELD_OUT, count=16_000)
RADIOGRAPHS = PictureSet(
    "radiographs", radiographs.draw, radiographs, radiographs.HELD_OUT, count=6_000
)
TISSUE = PictureSet("tissue", tissue.draw, tissue, tissue.HELD_OUT, count=6_000)
