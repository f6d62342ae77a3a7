"""Arithmetic of embeddings: unit length, encodings, labels by examples, pictures of feature maps."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Vector = NDArray[np.float32]

# What the brightest and the darkest hundredth of a component are cut to.
_RANGE = (1.0, 99.0)
# A picture of features has at least so many pixels on its shorter side.
_PICTURE_SIDE = 256


def unit(vectors: Vector) -> Vector:
    """Scale the last axis to unit length; zeros stay zeros."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def encoded(numbers: Vector, format: str) -> Vector | str:
    """Return the numbers, in rows, as one flat array or as base64 of little-endian float32."""
    if format == "base64":
        return base64.b64encode(numbers.astype("<f4").tobytes()).decode()
    return np.ascontiguousarray(numbers).reshape(-1)


def prototypes(vectors: Vector, labels: Sequence[str]) -> tuple[list[str], Vector]:
    """Return the labels that are not empty, in order, and for each the unit mean [labels, D] of its vectors.

    `vectors` [N, D] count by their direction only.
    """
    names = list(dict.fromkeys(label for label in labels if label))
    directions = unit(vectors)
    means = [
        directions[[i for i, label in enumerate(labels) if label == name]].mean(0) for name in names
    ]
    return names, unit(np.stack(means))


def principal_colours(maps: Sequence[Vector]) -> list[NDArray[np.uint8]]:
    """Turn feature maps [h, w, C] into pixels [h, w, 3]: the first three principal components of all.

    Components are the maps' together, so that a colour means the same in each. A component's sign is
    chosen so that its largest weight is positive; with fewer than three channels the rest is black.
    """
    rows = np.concatenate([each.reshape(-1, each.shape[-1]) for each in maps]).astype(np.float64)
    centred = rows - rows.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :3]
    strongest = np.take_along_axis(axes, np.abs(axes).argmax(0)[None], axis=0)
    shown = centred @ (axes * np.sign(strongest))
    low, high = np.percentile(shown, _RANGE, axis=0)
    span = np.where(high > low, high - low, 1.0)
    levels = np.clip((shown - low) / span, 0.0, 1.0) * 255.0
    pixels = np.zeros((len(rows), 3), np.uint8)
    pixels[:, : levels.shape[1]] = levels.round()
    ends = np.cumsum([each.shape[0] * each.shape[1] for each in maps])[:-1]
    parts = np.split(pixels, ends)
    return [part.reshape(*each.shape[:2], 3) for part, each in zip(parts, maps, strict=True)]


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels [h, w, 3] as a PNG, each made a square block that is large enough to be seen."""
    height, width = pixels.shape[:2]
    block = max(1, -(-_PICTURE_SIDE // min(height, width)))
    image = Image.fromarray(pixels).resize(
        (width * block, height * block), Image.Resampling.NEAREST
    )
    file = BytesIO()
    image.save(file, "png")
    return file.getvalue()
