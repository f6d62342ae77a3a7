"""Swin Transformer as the backbone of UPerNet (https://arxiv.org/abs/2103.14030, section 4.3).

The 150 classes of ADE20K. Checkpoints are those of the authors' fork of mmsegmentation; pictures are seen whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from models.architecture import Architecture, Source, StateDict, Variant
from models.classification.swin import PUBLISHED, SwinArchitecture
from models.layers.segmenter import Segmenter
from models.layers.swin_pyramid import SwinPyramid
from models.registry import register
from models.segmentation import _upernet
from models.segmentation._upernet import UPerNet
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Task

# name: (width, depths, heads, multiply-adds at 512 x 2048, mIoU at one scale and at several), as the authors list them.
_SIZES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], float, float, float]] = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24), 945e9, 44.51, 45.81),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24), 1038e9, 47.64, 49.47),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32), 1188e9, 48.13, 49.72),
}


def _variants() -> dict[str, Variant]:
    return {
        f"upernet-{name}": Variant(
            f"upernet-{name}",
            config={
                "backbone": {"dim": dim, "depths": depths, "heads": heads, "window": 7},
                "num_classes": len(_upernet.labels()),
            },
            image=_upernet.mmsegmentation_input(512),
            labels=_upernet.labels(),
            segmentation="semantic",
            sources=(Source(f"{PUBLISHED}/v1.0.1/upernet_swin_{name}_patch4_window7_512x512.pth"),),
            metrics=_upernet.mean_iou(single, several, "UPerNet, trained on crops of 512 x 512"),
            flops=int(flops),
        )
        for name, (dim, depths, heads, flops, single, several) in _SIZES.items()
    }


@register
class SwinSegmentation(Architecture):
    """UPerNet with a Swin Transformer."""

    slug = "swin-segmentation"
    title = "Swin Transformer segmentor"
    task = Task.SEGMENTATION
    paper = SwinArchitecture.paper
    origin = "own"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    max_batch = 2
    preferred_batches = (2,)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the segmentor; `backbone` has the arguments of `SwinPyramid`."""
        backbone = SwinPyramid(**config["backbone"])
        return UPerNet(backbone, backbone.dims, config["num_classes"])

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Drop the auxiliary head, and the tables of relative positions, which follow from the window's size."""
        state = _upernet.without_auxiliary(checkpoint)
        return {k: v for k, v in state.items() if not k.endswith("relative_position_index")}

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Segmenter(network, card, device)
