"""Faces in a picture: where they are, and their crops as the deepfake networks take them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.media.images import to_planes
from service.triton.cards import Card
from service.triton.client import Triton

# Detection needs no more: at 640 pixels a face of an eighth of the picture still has 80.
DETECTION_SIDE = 640


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels; right and bottom are the first column and row outside it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        return max(0, self.right - self.left) * max(0, self.bottom - self.top)

    @property
    def shorter_side(self) -> int:
        return min(self.right - self.left, self.bottom - self.top)

    def iou(self, other: Box) -> float:
        """Return intersection over union, 0..1."""
        both = Box(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        )
        overlap = both.area if both.right > both.left and both.bottom > both.top else 0
        union = self.area + other.area - overlap
        return overlap / union if union else 0.0


def detection_input(image: Image.Image) -> NDArray[np.uint8]:
    """Return `image` with its longer side at most DETECTION_SIDE, as uint8 [1, 3, h, w]."""
    longer = max(image.size)
    if longer > DETECTION_SIDE:
        width, height = (max(1, round(side * DETECTION_SIDE / longer)) for side in image.size)
        # Reducing by a whole factor first costs little sharpness and most of the time.
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return to_planes(image)[None]


async def detect_faces(
    triton: Triton, detector: Card, pixels: NDArray[np.uint8], size: tuple[int, int], most: int
) -> list[Box]:
    """Return the faces of one picture in pixels of `size` (width, height), best score first.

    `pixels` is what `detection_input` made of that picture. At most `most` faces are returned.
    Raises what `Triton.infer` raises.
    """
    answer = await triton.infer(detector.id, {"IMAGE": pixels})
    found = []
    for edges, score in zip(answer["BOXES"][0], answer["SCORES"][0], strict=True):
        box = pixel_box(edges, size)
        # Rows with score 0 fill the batch up.
        if score > 0 and box.area:
            found.append((float(score), box))
    found.sort(key=lambda scored: -scored[0])
    return [box for _, box in found[:most]]


def pixel_box(edges: NDArray[np.float32], size: tuple[int, int]) -> Box:
    """Return the box of edges xyxy in 0..1, rounded to pixels and cut at the picture's borders."""
    width, height = size
    left, right = (round(float(x) * width) for x in edges[0::2])
    top, bottom = (round(float(y) * height) for y in edges[1::2])
    return Box(
        min(max(left, 0), width),
        min(max(top, 0), height),
        min(max(right, 0), width),
        min(max(bottom, 0), height),
    )


def crop_face(image: Image.Image, box: Box, height: int, width: int) -> NDArray[np.uint8]:
    """Return the face at exactly `box`, as uint8 [3, height, width] (aspect not kept).

    Resized by area, as OpenCV's INTER_AREA does for the released GenConViT: every pixel of the
    crop is the mean of the rectangle that it covers, whether that makes the face smaller or larger.
    """
    pixels = np.asarray(image.crop((box.left, box.top, box.right, box.bottom)), np.float32)
    down = _area_weights(pixels.shape[0], height)
    across = _area_weights(pixels.shape[1], width)
    planes = down @ pixels.transpose(2, 0, 1) @ across.T
    return np.ascontiguousarray(np.clip(np.rint(planes), 0, 255), np.uint8)


def sharpness(face: NDArray[np.uint8]) -> float:
    """Return the variance of the Laplacian of a face's luma (uint8 [3, h, w]); low means blurred."""
    luma = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), face.astype(np.float32), 1)
    laplacian = (
        luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1]
    )
    return float(laplacian.var()) if laplacian.size else 0.0


def _area_weights(source: int, target: int) -> NDArray[np.float32]:
    """Return [target, source]: the share of each source pixel in the stretch of each target pixel."""
    edges = np.arange(target + 1, dtype=np.float64) * (source / target)
    pixel = np.arange(source, dtype=np.float64)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = np.clip(overlap, 0.0, None)
    shares: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return shares
