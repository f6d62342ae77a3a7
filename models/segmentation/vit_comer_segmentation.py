"""ViT-CoMer as the backbone of UPerNet (https://arxiv.org/abs/2403.07392, section 4.2).

The 150 classes of ADE20K. The authors' checkpoints have no stable address: they are added by hand. Pictures are
seen through windows that overlap by a third.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from models.architecture import Architecture, StateDict, Variant
from models.detection.vit_comer import BY_HAND, PAPER
from models.layers.segmenter import Segmenter
from models.layers.vit_comer import ViTCoMer
from models.registry import register
from models.segmentation import _upernet
from models.segmentation._upernet import UPerNet, Windows
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Task

# name: (backbone, mIoU at one scale, notes), as in the authors' list of models.
_SIZES: dict[str, tuple[Mapping[str, Any], float, tuple[str, ...]]] = {
    "tiny": ({"dim": 192, "heads": 3, "mrfp_ratio": 6.0}, 43.5, (BY_HAND,)),
    "small": ({"dim": 384, "heads": 6, "mrfp_ratio": 1.5}, 46.5, (BY_HAND,)),
    "base": (
        {"dim": 768, "heads": 12, "mrfp_ratio": 1.0, "deform_heads": 12, "deform_ratio": 0.5},
        48.8,
        ("The authors publish no weights of this size.",),
    ),
}


def _variants() -> dict[str, Variant]:
    return {
        f"upernet-{name}": Variant(
            f"upernet-{name}",
            config={
                "backbone": {"depth": 12, **backbone},
                "num_classes": len(_upernet.labels()),
            },
            image=_upernet.mmsegmentation_input(512),
            labels=_upernet.labels(),
            segmentation="semantic",
            metrics=_upernet.mean_iou(single, None, "UPerNet, DeiT"),
            notes=notes,
        )
        for name, (backbone, single, notes) in _SIZES.items()
    }


@register
class ViTCoMerSegmentation(Architecture):
    """UPerNet with a ViT-CoMer."""

    slug = "vit-comer-segmentation"
    title = "ViT-CoMer segmentor"
    task = Task.SEGMENTATION
    paper = PAPER
    origin = "own"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    max_batch = 2
    preferred_batches = (2,)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the segmentor; `backbone` has the arguments of `ViTCoMer`."""
        backbone = ViTCoMer(**config["backbone"])
        windows = Windows(512, 341, multiple_of=32)
        return UPerNet(backbone, backbone.dims, config["num_classes"], windows)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Drop the auxiliary head, which only training needs."""
        return _upernet.without_auxiliary(checkpoint)

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Segmenter(network, card, device)
