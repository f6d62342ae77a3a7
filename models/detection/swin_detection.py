"""Swin Transformer as the backbone of Mask R-CNN (https://arxiv.org/abs/2103.14030, section 4.2).

Boxes and masks of the 80 classes of COCO. Checkpoints are those of the authors' fork of mmdetection.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.classification.swin import PUBLISHED, SwinArchitecture
from models.detection import _coco
from models.detection._mask_rcnn import MaskRCNN
from models.layers.detector import Detector, parameters
from models.layers.swin_pyramid import SwinPyramid
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Task

_SIZES: dict[str, Mapping[str, Any]] = {
    "tiny": {"dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "window": 7},
    "small": {"dim": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24), "window": 7},
    "base": {"dim": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "window": 7},
}
# (head, size, schedule): (release, multiply-adds at 1280 x 800, box AP, mask AP), as in the authors' list of models.
_PUBLISHED = {
    ("mask-rcnn", "tiny", "1x"): ("v1.0.3", 267e9, 43.7, 39.8),
    ("mask-rcnn", "tiny", "3x"): ("v1.0.2", 267e9, 46.0, 41.6),
    ("mask-rcnn", "small", "3x"): ("v1.0.2", 359e9, 48.5, 43.3),
    ("cascade-mask-rcnn", "tiny", "1x"): ("v1.0.3", 745e9, 48.1, 41.7),
    ("cascade-mask-rcnn", "tiny", "3x"): ("v1.0.2", 745e9, 50.4, 43.7),
    ("cascade-mask-rcnn", "small", "3x"): ("v1.0.2", 838e9, 51.9, 45.0),
    ("cascade-mask-rcnn", "base", "3x"): ("v1.0.2", 982e9, 51.9, 45.0),
}


def _file(head: str, size: str, schedule: str, release: str) -> Source:
    suffix = "_1x" if schedule == "1x" else ""
    name = f"{head.replace('-', '_')}_swin_{size}_patch4_window7{suffix}.pth"
    return Source(f"{PUBLISHED}/{release}/{name}")


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            f"{head}-{size}-{schedule}",
            config=_coco.config(head, _SIZES[size]),
            image=_coco.mmdetection_input(),
            labels=_coco.LABELS,
            sources=(_file(head, size, schedule, release),),
            metrics=_coco.average_precision(box, mask, f"{schedule} schedule"),
            flops=int(flops),
            parameters=parameters(1000),
        )
        for (head, size, schedule), (release, flops, box, mask) in _PUBLISHED.items()
    ]
    variants += [_coco.without_masks(size, _SIZES[size]) for size in ("tiny", "small")]
    return {variant.name: variant for variant in variants}


@register
class SwinDetection(Architecture):
    """Mask R-CNN, single or as a cascade, or without masks Faster R-CNN, with a Swin Transformer."""

    slug = "swin-detection"
    title = "Swin Transformer detector"
    task = Task.DETECTION
    paper = SwinArchitecture.paper
    origin = "own"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    max_batch = 4
    preferred_batches = (2, 4)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the detector; `backbone` has the arguments of `SwinPyramid`, the rest those of `MaskRCNN`."""
        settings = dict(config)
        backbone = SwinPyramid(**settings.pop("backbone"))
        return MaskRCNN(backbone, backbone.dims, **settings)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Drop the tables of relative positions, which follow from the window's size."""
        state = unwrapped(checkpoint)
        return {k: v for k, v in state.items() if not k.endswith("relative_position_index")}

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Detector(network, card, device)
