"""What classifiers of ImageNet share: labels, the pictures of the evaluation, published accuracy."""

from __future__ import annotations

from functools import cache
from typing import Literal

from timm.data import ImageNetInfo

from service.triton.cards import ImageInput, Metric


@cache
def labels(subset: str = "imagenet-1k") -> tuple[str, ...]:
    """Return the labels of a subset that timm knows (`imagenet-1k`, `imagenet-22k`, ...), in their order."""
    return tuple(ImageNetInfo(subset).label_descriptions())


def evaluation(
    size: int,
    crop: float = 0.875,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
) -> ImageInput:
    """Return the usual evaluation: the shorter side scaled to `size / crop`, the centre cut out.

    Mean and deviation are ImageNet's.
    """
    return ImageInput(
        height=size,
        width=size,
        resize="shorter-side",
        resize_to=int(size / crop),
        interpolation=interpolation,
    )


def squashed(size: int, interpolation: Literal["bilinear", "bicubic"] = "bicubic") -> ImageInput:
    """Return an evaluation that scales the whole picture to a square, whatever its sides."""
    return ImageInput(height=size, width=size, resize="squash", interpolation=interpolation)


def top1(value: float, note: str = "") -> tuple[Metric, ...]:
    """Return the published top-1 accuracy (per cent) of ImageNet-1k's validation set."""
    return (
        Metric(name="top-1", value=value, dataset="ImageNet-1k", origin="published", note=note),
    )
