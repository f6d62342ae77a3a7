"""RT-DETR: DETRs Beat YOLOs on Real-time Object Detection (https://arxiv.org/abs/2304.08069).

A residual network, an encoder that attends within the coarsest map and merges the three, and a decoder
whose queries start at the places that the encoder finds best. Boxes come without anchors and without
suppression, so one picture costs one forward pass. The network and its weights are those of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.detection import _coco
from models.layers.detector import Detections, Detector, parameters
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Paper, Task

if TYPE_CHECKING:
    from transformers import RTDetrForObjectDetection

QUERIES = 300
_SIDE = 640

_BASIC = {
    "backbone": {"layer_type": "basic", "hidden_sizes": (64, 128, 256, 512)},
    "network": {"encoder_in_channels": (128, 256, 512), "hidden_expansion": 0.5},
}
# name: (depths of the backbone, further settings of the backbone and of the rest).
_SIZES: dict[str, tuple[tuple[int, ...], Mapping[str, Any], Mapping[str, Any]]] = {
    "r18": ((2, 2, 2, 2), _BASIC["backbone"], _BASIC["network"] | {"decoder_layers": 3}),
    "r34": ((3, 4, 6, 3), _BASIC["backbone"], _BASIC["network"] | {"decoder_layers": 4}),
    "r50": ((3, 4, 6, 3), {}, {}),
    "r101": (
        (3, 4, 23, 3),
        {},
        {
            "encoder_ffn_dim": 2048,
            "encoder_hidden_dim": 384,
            "decoder_in_channels": (384, 384, 384),
        },
    ),
}
# What is called differently in the hub's files than in transformers since its version 5.
_RENAMED = {
    r"\bout_proj\b": "o_proj",
    r"\blayers\.(\d+)\.fc([12])\b": r"layers.\1.mlp.fc\2",
    r"\bencoder\.encoder\.(\d+)\.layers\b": r"encoder.aifi.\1.layers",
}
# variant: (repository of the hub, multiply-adds, box AP). `o365`: trained on Objects365 first.
_PUBLISHED = {
    "r18": ("PekingU/rtdetr_r18vd", 60.7e9, 46.5),
    "r18-o365": ("PekingU/rtdetr_r18vd_coco_o365", 60.7e9, 49.2),
    "r34": ("PekingU/rtdetr_r34vd", 91.0e9, 48.9),
    "r50": ("PekingU/rtdetr_r50vd", 136.0e9, 53.1),
    "r50-o365": ("PekingU/rtdetr_r50vd_coco_o365", 136.0e9, 55.3),
    "r101": ("PekingU/rtdetr_r101vd", 259.0e9, 54.3),
    "r101-o365": ("PekingU/rtdetr_r101vd_coco_o365", 259.0e9, 56.2),
}


class RTDetr(nn.Module):
    """transformers' network, asked as every detector is."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.detr = build(config)

    def forward(
        self,
        image: torch.Tensor,
        thresholds: Sequence[float],
        most: Sequence[int],
    ) -> list[Detections]:
        """Detect objects in pictures [B, 3, H, W] in 0..1; see `models.layers.detector.Detects`."""
        answer = self.detr(pixel_values=image)
        scores = answer.logits.float().sigmoid()  # B, queries, classes
        centre, side = answer.pred_boxes.float().split(2, dim=2)
        scale = image.new_tensor([image.shape[3], image.shape[2]] * 2)
        boxes = torch.cat((centre - side / 2, centre + side / 2), 2) * scale
        count = scores.shape[2]
        found = []
        for of_one, box, threshold, number in zip(scores, boxes, thresholds, most, strict=True):
            best, where = of_one.flatten().topk(min(number, len(of_one)))
            best, where = best[best > threshold], where[best > threshold]
            found.append(Detections(box[where // count], best, where % count, None))
        return found


def build(config: Mapping[str, Any]) -> RTDetrForObjectDetection:
    """Return transformers' network with random weights."""
    # Takes seconds to import, which only those who build this should spend.
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    backbone = config["backbone"] | {"depths": list(config["backbone"]["depths"])}
    return RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=RTDetrResNetConfig(**backbone, out_indices=[2, 3, 4]),
            num_labels=config["num_classes"],
            num_queries=QUERIES,
            **config["network"],
        )
    )


def official_to_transformers(name: str) -> str:
    """Return this network's name of an entry of a file of the hub."""
    for old, new in _RENAMED.items():
        name = re.sub(old, new, name)
    return name if name.startswith("detr.") else f"detr.{name}"


def _variants() -> dict[str, Variant]:
    variants = []
    for name, (repository, flops, ap) in _PUBLISHED.items():
        depths, backbone, network = _SIZES[name.partition("-")[0]]
        variants.append(
            Variant(
                name,
                config={
                    "backbone": {"depths": depths, **backbone},
                    "network": network,
                    "num_classes": 80,
                },
                image=ImageInput(
                    height=_SIDE, width=_SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
                ),
                labels=_coco.LABELS,
                sources=(Source(f"hf://{repository}/model.safetensors"),),
                metrics=_coco.average_precision(ap),
                flops=int(flops),
                parameters=parameters(QUERIES),
                default=name == "r18",
            )
        )
    return {variant.name: variant for variant in variants}


@register
class RTDetrArchitecture(Architecture):
    """RT-DETR with residual networks."""

    slug = "rt-detr"
    title = "RT-DETR"
    task = Task.DETECTION
    paper = Paper(
        slug="rt-detr",
        title="DETRs Beat YOLOs on Real-time Object Detection",
        year=2024,
        arxiv="2304.08069",
    )
    origin = "library"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    max_batch = 8
    preferred_batches = (2, 4, 8)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network; `backbone` and `network` change the settings of transformers' configuration."""
        return RTDetr(config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Map the names of the hub's files to those of transformers' network, whose own come through unchanged."""
        return {official_to_transformers(name): t for name, t in unwrapped(checkpoint).items()}

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Detector(network, card, device)
