"""kMaX-DeepLab: k-means Mask Transformer (https://arxiv.org/abs/2207.04044).

Queries are the centres of clusters of pixels. Where other mask transformers let a query attend to all pixels, here
every pixel is given to the query that suits it best, and every query takes up the sum of its pixels:
one step of k-means, done in each layer of the decoder on finer and finer maps. The answer is panoptic: things
one by one, stuff by kind. Backbones are torchvision's ResNet and timm's ConvNeXt, whose names `translate`
maps; everything else has the names of the authors' PyTorch checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.classification.convnext import official_to_timm
from models.demo import segmented
from models.layers.segmenter import Segmentation, Segmenter
from models.panoptic import Classes, ade20k, cityscapes, coco
from models.registry import register
from models.segmentation._kmax_merging import Masks, Merging, panoptic
from models.segmentation._kmax_network import Head, KMaXDeepLab, TransformerDecoder
from models.segmentation._kmax_pixel_decoder import (
    ConvNeXtFeatures,
    PixelDecoder,
    ResNetFeatures,
)
from models.serving import Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Metric, Paper, Task

# Of checkpoints: what only training uses.
UNUSED = ("sem_seg_head.predictor._auxiliary_semantic_predictor.", "criterion.")

_RESNET = {"resnet": (3, 4, 6, 3)}
# name: (depths, widths)
_CONVNEXTS = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}
_HEAD = {
    "depths": (1, 5, 1, 1),
    "widths": (512, 256, 128, 64),
    "axial": (True, True, False, False),
    "layers": (2, 2, 2),
    "num_queries": 128,
    "dim": 256,
    "ffn": 2048,
}


@dataclass(frozen=True)
class _DataSet:
    """What was trained on one data set: published PQ of the PyTorch weights, and the same network's in TensorFlow."""

    name: str
    classes: Classes
    canvas: tuple[int, int]
    head: Mapping[str, Any]
    merging: Merging
    quality: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Prediction:
    """Class logits [Q, K + 1] and mask logits of one picture."""

    classes: torch.Tensor
    masks: Masks


class KMaXSegmenter(KMaXDeepLab):
    """The network with what it does before and after: filling up to the canvas, merging of queries to segments."""

    def __init__(self, backbone: nn.Module, head: Head, canvas: tuple[int, int]) -> None:
        super().__init__(backbone, head)
        self.canvas = canvas
        self.merging = Merging(thing=0.5, stuff=0.5)
        self.things: tuple[int, ...] = ()

    def predict(self, image: torch.Tensor, depths: Sequence[int]) -> list[Prediction]:
        """Fill normalised pictures [B, 3, h, w] up with zeros, right and below, to the canvas at least."""
        sent = (image.shape[2], image.shape[3])
        below, right = (max(0, full - side) for full, side in zip(self.canvas, sent, strict=True))
        classes, masks = self(F.pad(image, (0, right, 0, below)))
        padded = (sent[0] + below, sent[1] + right)
        return [
            Prediction(*each)
            for each in zip(classes, (Masks(m, sent, padded) for m in masks), strict=True)
        ]

    def decide(self, predicted: Prediction, size: tuple[int, int]) -> Segmentation:
        """Merge the queries to panoptic segments at `size`."""
        return panoptic(predicted.classes, predicted.masks.at(size), self.merging, self.things)


def official_to_own(name: str) -> str:
    """Return our name of an entry of the authors' checkpoints; names of our own stay as they are."""
    body = name.removeprefix("backbone.")
    if body == name or body.startswith(("body.", "stem.0", "stem.1")):
        return name
    if not re.match(r"(stem|res\d)\.", body):
        return f"backbone.{official_to_timm(body)}"
    body = re.sub(r"\bconv(\d)\.norm\.", r"bn\1.", body)
    body = re.sub(r"\bshortcut\.norm\.", "downsample.1.", body)
    body = re.sub(r"\bshortcut\.", "downsample.0.", body)
    body = re.sub(r"^res(\d)\.", lambda stage: f"layer{int(stage[1]) - 1}.", body)
    return f"backbone.body.{body.removeprefix('stem.')}"


def _image(canvas: tuple[int, int]) -> ImageInput:
    return ImageInput(
        resize="fit",
        resize_to=min(canvas),
        max_side=max(canvas),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def _variants() -> dict[str, Variant]:
    sets = (
        _DataSet(
            "coco",
            coco(),
            (1281, 1281),
            _HEAD,
            Merging(thing=0.7, stuff=0.5),
            {
                "r50": (53.3, 53.0),
                "convnext-tiny": (55.5, 55.3),
                "convnext-small": (56.7, 56.3),
                "convnext-base": (57.2, 57.2),
                "convnext-large": (57.9, 57.9),
            },
        ),
        _DataSet(
            "cityscapes",
            cityscapes(),
            (1025, 2049),
            _HEAD
            | {
                "depths": (1, 5, 1, 1, 1),
                "widths": (512, 256, 128, 64, 32),
                "axial": (True, True, False, False, False),
                "num_queries": 256,
            },
            Merging(thing=0.5, stuff=0.3, overlap=0.9, mask_weight=0.0),
            {"r50": (63.5, 64.3), "convnext-large": (68.4, 68.4)},
        ),
        _DataSet(
            "ade20k",
            ade20k(),
            (1281, 1281),
            _HEAD,
            Merging(thing=0.4, stuff=0.4),
            {"r50": (42.2, 42.3), "convnext-large": (50.0, 50.9)},
        ),
    )
    variants = [_demo(), *(_variant(data, name) for data in sets for name in data.quality)]
    return {variant.name: variant for variant in variants}


def _demo() -> Variant:
    return Variant(
        "demo",
        config={
            "backbone": {"convnext": ((1, 1, 1, 1), (16, 24, 32, 48), 1.0)},
            "depths": (1, 1, 1, 1),
            "widths": (16, 16, 16, 16),
            "axial": (True, True, False, False),
            "layers": (1, 1, 1),
            "num_queries": 10,
            "num_classes": len(segmented.CLASSES),
            "dim": 32,
            "ffn": 64,
            "canvas": (segmented.SIZE, segmented.SIZE),
        },
        image=_image((segmented.SIZE, segmented.SIZE)),
        labels=segmented.CLASSES,
        segmentation="panoptic",
        things=tuple(range(1, len(segmented.CLASSES))),
        thresholds=asdict(Merging(thing=0.5, stuff=0.5)),
        demo=True,
    )


def _variant(data: _DataSet, name: str) -> Variant:
    pytorch, tensorflow = data.quality[name]
    size = name.removeprefix("convnext-")
    dataset = {"coco": "COCO val2017", "cityscapes": "Cityscapes val", "ade20k": "ADE20K val"}
    return Variant(
        f"{data.name}-{name}",
        config={
            "backbone": _RESNET if name == "r50" else {"convnext": _CONVNEXTS[size]},
            **data.head,
            "num_classes": len(data.classes.labels),
            "canvas": data.canvas,
        },
        image=_image(data.canvas),
        labels=data.classes.labels,
        segmentation="panoptic",
        things=data.classes.things,
        thresholds=asdict(data.merging),
        metrics=tuple(
            Metric(
                name="PQ",
                value=value,
                dataset=dataset[data.name],
                origin="published",
                note=f"{framework}, {data.canvas[0]}x{data.canvas[1]}",
            )
            for framework, value in (("PyTorch", pytorch), ("TensorFlow", tensorflow))
        ),
        notes=(
            "The authors' PyTorch checkpoints lie on a disk without stable addresses: download one by "
            "hand, then `vitrine add`. Their TensorFlow archives must go through their own converter.",
        ),
    )


@register
class KMaXDeepLabArchitecture(Architecture):
    """kMaX-DeepLab for panoptic segmentation."""

    slug = "kmax-deeplab"
    title = "kMaX-DeepLab"
    task = Task.SEGMENTATION
    paper = Paper(
        slug="kmax-deeplab", title="k-means Mask Transformer", year=2022, arxiv="2207.04044"
    )
    origin = "own"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    variants = _variants()
    max_batch = 4
    preferred_batches = (2, 4)

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build `backbone` (one of resnet: depths, convnext: (depths, widths, initial layer scale)), a pixel decoder of stages of
        `depths` blocks and `widths`, and `layers` of the transformer on each of its three coarsest maps."""
        ((kind, sizes),) = config["backbone"].items()
        backbone = ResNetFeatures(sizes) if kind == "resnet" else ConvNeXtFeatures(*sizes)
        decoder = PixelDecoder(
            backbone.channels, config["depths"], config["widths"], config["axial"]
        )
        predictor = TransformerDecoder(
            config["widths"],
            config["layers"],
            config["num_queries"],
            config["num_classes"],
            config["dim"],
            config["ffn"],
        )
        return KMaXSegmenter(backbone, Head(decoder, predictor), config["canvas"])

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Leave out what only training uses, and map the names of the backbone."""
        return {
            official_to_own(name): value
            for name, value in unwrapped(checkpoint).items()
            if not name.startswith(UNUSED)
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        assert isinstance(network, KMaXSegmenter)
        network.merging, network.things = Merging(**card.thresholds), card.things
        return Segmenter(network, card, device)
