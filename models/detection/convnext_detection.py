"""ConvNeXt as the backbone of Mask R-CNN (https://arxiv.org/abs/2201.03545, section 3.2).

Boxes and masks of the 80 classes of COCO. Checkpoints are the authors' own, made with mmdetection. The demo
variant is a small one that knows drawn shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.classification.convnext import PUBLISHED, ConvNeXtArchitecture
from models.demo import shapes
from models.detection import _coco
from models.detection._mask_rcnn import MaskRCNN, Proposing
from models.layers.convnext_pyramid import ConvNeXtPyramid, backbone_to_timm
from models.layers.detector import Detector, parameters
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Task

_SIZES: dict[str, Mapping[str, Any]] = {
    "tiny": {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)},
    "small": {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)},
    "base": {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)},
    "large": {"depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)},
    "xlarge": {"depths": (3, 3, 27, 3), "dims": (256, 512, 1024, 2048)},
}
# (head, size, pre-training): (multiply-adds at 1280 x 800, box AP, mask AP), as in the authors' list of models.
_PUBLISHED = {
    ("mask-rcnn", "tiny", "1k"): (262e9, 46.2, 41.7),
    ("cascade-mask-rcnn", "tiny", "1k"): (741e9, 50.4, 43.7),
    ("cascade-mask-rcnn", "small", "1k"): (827e9, 51.9, 45.0),
    ("cascade-mask-rcnn", "base", "1k"): (964e9, 52.7, 45.6),
    ("cascade-mask-rcnn", "base", "22k"): (964e9, 54.0, 46.9),
    ("cascade-mask-rcnn", "large", "22k"): (1354e9, 54.8, 47.6),
    ("cascade-mask-rcnn", "xlarge", "22k"): (1898e9, 55.2, 47.7),
}
_DEMO_SIDE = 96


def _variants() -> dict[str, Variant]:
    variants = (
        Variant(
            "demo",
            config={
                "backbone": {"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64)},
                "num_classes": len(shapes.LABELS),
                "masks": True,
                "width": 32,
                "hidden": 128,
                "mask_depth": 1,
                # Drawn shapes are as high as wide, and at least a tenth of a picture.
                "scales": (4,),
                "ratios": (1.0,),
                "proposing": {"before": 100, "overlap": 0.7, "most": 100},
            },
            image=ImageInput(resize="fit", resize_to=_DEMO_SIDE, max_side=_DEMO_SIDE),
            labels=shapes.LABELS,
            parameters=parameters(1000),
            demo=True,
        ),
        *(
            Variant(
                f"{head}-{size}-{training}",
                config=_coco.config(head, _SIZES[size]),
                image=_coco.mmdetection_input(),
                labels=_coco.LABELS,
                sources=(
                    Source(
                        f"{PUBLISHED}/coco/{head.replace('-', '_')}_convnext_{size}_{training}_3x.pth"
                    ),
                ),
                metrics=_coco.average_precision(box, mask, f"ImageNet-{training}, 3x schedule"),
                flops=int(flops),
                parameters=parameters(1000),
            )
            for (head, size, training), (flops, box, mask) in _PUBLISHED.items()
        ),
        *(_coco.without_masks(size, _SIZES[size]) for size in ("tiny", "small")),
    )
    return {variant.name: variant for variant in variants}


@register
class ConvNeXtDetection(Architecture):
    """Mask R-CNN, single or as a cascade, or without masks Faster R-CNN, with a ConvNeXt."""

    slug = "convnext-detection"
    title = "ConvNeXt detector"
    task = Task.DETECTION
    paper = ConvNeXtArchitecture.paper
    origin = "own"
    licence = Licence(code="MIT", weights="MIT")
    max_batch = 4
    preferred_batches = (2, 4)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the detector; `backbone` has the arguments of `ConvNeXtPyramid`, the rest those of `MaskRCNN`."""
        settings = dict(config)
        backbone = ConvNeXtPyramid(**settings.pop("backbone"))
        if "proposing" in settings:
            settings["proposing"] = Proposing(**settings["proposing"])
        return MaskRCNN(backbone, backbone.dims, **settings)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Map the authors' names of the backbone to timm's; timm's own come through unchanged."""
        return backbone_to_timm(unwrapped(checkpoint))

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Detector(network, card, device)
