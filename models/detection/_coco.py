"""What detectors trained on COCO share: its 80 classes, the pictures of mmdetection's evaluation, published figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models import panoptic
from models.architecture import Variant
from models.layers.detector import parameters
from service.triton.cards import ImageInput, Metric

# Only the things of COCO are detected.
LABELS = panoptic.coco().labels[: len(panoptic.coco().things)]


def mmdetection_input() -> ImageInput:
    """Return the usual test of mmdetection: as large as fits into 1333 x 800."""
    return ImageInput(
        resize="fit",
        resize_to=800,
        max_side=1333,
        interpolation="linear",
        mean=(123.675 / 255, 116.28 / 255, 103.53 / 255),
        std=(58.395 / 255, 57.12 / 255, 57.375 / 255),
    )


def config(head: str, backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a detector with the head `mask-rcnn`, `cascade-mask-rcnn` or `faster-rcnn`."""
    return {
        "backbone": backbone,
        "num_classes": len(LABELS),
        "masks": head != "faster-rcnn",
        "cascade": head.startswith("cascade-"),
    }


def without_masks(size: str, backbone: Mapping[str, Any]) -> Variant:
    """Return the variant for checkpoints of detectors without masks, of which the papers' authors publish none."""
    return Variant(
        f"faster-rcnn-{size}",
        config=config("faster-rcnn", backbone),
        image=mmdetection_input(),
        labels=LABELS,
        parameters=parameters(1000),
        notes=("For checkpoints of your own: the authors publish none without masks.",),
    )


def average_precision(box: float, mask: float | None = None, note: str = "") -> tuple[Metric, ...]:
    """Return the published average precision (per cent, over overlaps of 0.5 to 0.95) on COCO val2017."""
    figures = {"box AP": box} | ({} if mask is None else {"mask AP": mask})
    return tuple(
        Metric(name=name, value=value, dataset="COCO val2017", origin="published", note=note)
        for name, value in figures.items()
    )
