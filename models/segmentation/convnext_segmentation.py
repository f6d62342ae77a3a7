"""ConvNeXt as the backbone of UPerNet (https://arxiv.org/abs/2201.03545, section 3.3).

The 150 classes of ADE20K. Checkpoints are the authors' own; pictures are seen through windows that overlap by a third.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from models.architecture import Architecture, Source, StateDict, Variant
from models.classification.convnext import PUBLISHED, ConvNeXtArchitecture
from models.layers.convnext_pyramid import ConvNeXtPyramid, backbone_to_timm
from models.layers.segmenter import Segmenter
from models.registry import register
from models.segmentation import _upernet
from models.segmentation._upernet import UPerNet, Windows
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Task

_SMALL_DEPTHS, _DEPTHS = (3, 3, 9, 3), (3, 3, 27, 3)
# name: (pre-training, depths, width of the first stage, side of the crops, multiply-adds, mIoU at one scale and at
# several), as the authors list them.
_SIZES: dict[str, tuple[str, tuple[int, ...], int, int, float, float, float]] = {
    "tiny": ("1k", _SMALL_DEPTHS, 96, 512, 939e9, 46.0, 46.7),
    "small": ("1k", _DEPTHS, 96, 512, 1027e9, 48.7, 49.6),
    "base": ("1k", _DEPTHS, 128, 512, 1170e9, 49.1, 49.9),
    "base-22k": ("22k", _DEPTHS, 128, 640, 1828e9, 52.6, 53.1),
    "large-22k": ("22k", _DEPTHS, 192, 640, 2458e9, 53.2, 53.7),
    "xlarge-22k": ("22k", _DEPTHS, 256, 640, 3335e9, 53.6, 54.0),
}
# Step between windows, by their side.
_STEPS = {512: 341, 640: 426}


def _variants() -> dict[str, Variant]:
    return {
        f"upernet-{name}": Variant(
            f"upernet-{name}",
            config={
                "backbone": {"depths": depths, "dims": tuple(width * 2**i for i in range(4))},
                "num_classes": len(_upernet.labels()),
                "side": side,
            },
            image=_upernet.mmsegmentation_input(side),
            labels=_upernet.labels(),
            segmentation="semantic",
            sources=(
                Source(
                    f"{PUBLISHED}/ade20k/upernet_convnext_{name.partition('-')[0]}_{training}_{side}x{side}.pth"
                ),
            ),
            metrics=_upernet.mean_iou(
                single, several, f"UPerNet, trained on crops of {side} x {side}"
            ),
            flops=int(flops),
        )
        for name, (training, depths, width, side, flops, single, several) in _SIZES.items()
    }


@register
class ConvNeXtSegmentation(Architecture):
    """UPerNet with a ConvNeXt."""

    slug = "convnext-segmentation"
    title = "ConvNeXt segmentor"
    task = Task.SEGMENTATION
    paper = ConvNeXtArchitecture.paper
    origin = "own"
    licence = Licence(code="MIT", weights="MIT")
    max_batch = 2
    preferred_batches = (2,)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the segmentor; `backbone` has the arguments of `ConvNeXtPyramid`, `side` is that of the windows."""
        backbone = ConvNeXtPyramid(**config["backbone"])
        windows = Windows(config["side"], _STEPS[config["side"]])
        return UPerNet(backbone, backbone.dims, config["num_classes"], windows)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Drop the auxiliary head and map the authors' names of the backbone to timm's."""
        return backbone_to_timm(_upernet.without_auxiliary(checkpoint))

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Segmenter(network, card, device)
