"""ViT-CoMer as the backbone of Mask R-CNN (https://arxiv.org/abs/2403.07392, section 4.1).

Boxes and masks of the 80 classes of COCO, from a transformer pre-trained by DINOv2. The authors' checkpoints
have no stable address: they are added by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from models.architecture import Architecture, Variant
from models.detection import _coco
from models.detection._mask_rcnn import MaskRCNN
from models.layers.detector import Detector, parameters
from models.layers.vit_comer import ViTCoMer
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

PAPER = Paper(
    slug="vit-comer",
    title="ViT-CoMer: Vision Transformer with Convolutional Multi-scale Feature Interaction for Dense Predictions",
    year=2024,
    arxiv="2403.07392",
)
BY_HAND = (
    "The authors publish weights in a store without stable addresses: download them from the links in "
    "https://github.com/Traffic-X/ViT-CoMer and add them with `vitrine add`."
)

# Two blocks of three attend in windows.
_DETECTOR: Mapping[str, Any] = {
    "depth": 12,
    "pretrain_size": 592,
    "mrfp_ratio": 0.5,
    "windows": (14, 14, None) * 4,
    "each_stage": False,
}
# name: (backbone, {schedule: (box AP, mask AP)}), as in the authors' list of models.
_SIZES: dict[str, tuple[Mapping[str, Any], Mapping[str, tuple[float, float]]]] = {
    "small": ({"dim": 384, "heads": 6}, {"1x": (48.6, 42.9), "3x": (52.1, 45.8)}),
    "base": (
        {"dim": 768, "heads": 12, "deform_heads": 12, "deform_ratio": 0.5},
        {"1x": (52.0, 45.5), "3x": (54.2, 47.6)},
    ),
}


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            f"mask-rcnn-{size}-{schedule}",
            config=_coco.config("mask-rcnn", {**_DETECTOR, **backbone}),
            image=_coco.mmdetection_input(),
            labels=_coco.LABELS,
            metrics=_coco.average_precision(*figures, f"Mask R-CNN, {schedule} schedule, DINOv2"),
            parameters=parameters(1000),
            notes=(BY_HAND,),
        )
        for size, (backbone, schedules) in _SIZES.items()
        for schedule, figures in schedules.items()
    ]
    return {variant.name: variant for variant in variants}


@register
class ViTCoMerArchitecture(Architecture):
    """Mask R-CNN with a ViT-CoMer."""

    slug = "vit-comer"
    title = "ViT-CoMer detector"
    task = Task.DETECTION
    paper = PAPER
    origin = "own"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    max_batch = 4
    preferred_batches = (2, 4)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the detector; `backbone` has the arguments of `ViTCoMer`, the rest those of `MaskRCNN`."""
        settings = dict(config)
        backbone = ViTCoMer(**settings.pop("backbone"))
        return MaskRCNN(backbone, backbone.dims, **settings)

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Detector(network, card, device)
