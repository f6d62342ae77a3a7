"""ECO-M2F: Efficient Transformer Encoders for Mask2Former-style models (https://arxiv.org/abs/2404.15244).

Most of the compute of Mask2Former's head is the deformable encoder of its pixel decoder. Here a gate, one linear layer
on the mean of the coarsest features, decides for each picture after which of the encoder's layers it leaves: easy
pictures early. The decoder of queries is Mask2Former's and stays as it is. The network is transformers'
(Mask2Former with Swin, after the code under the MIT licence); the gate is written here from its description.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.demo import segmented
from models.layers.segmenter import Segmenter
from models.panoptic import Classes, cityscapes, coco
from models.registry import register
from models.segmentation._eco_m2f_names import official_to_own
from models.segmentation._mask2former_merging import Merging
from models.serving import Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Metric, Paper, Parameter, Task

_SWIN_TINY = {
    "embed_dim": 96,
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "window_size": 7,
    "dim": 256,
    "heads": 8,
    "encoder_layers": 6,
    "encoder_ffn": 1024,
    "decoder_layers": 9,
    "decoder_ffn": 2048,
    "num_queries": 100,
    "first_exit": 2,
}


def depth_parameter(first: int, last: int) -> Parameter:
    """Return what a caller may say about the depth of the encoder."""
    return Parameter(
        type="integer",
        minimum=first,
        maximum=last,
        description="Layers of the encoder to run; without it, as many as the gate finds right.",
    )


def _variants() -> dict[str, Variant]:
    # beta weighs compute against quality when the gate is trained: (PQ, mIoU, AP, multiply-adds).
    sets = {
        "coco": (
            coco(),
            "COCO val2017",
            (800, 1333),
            {"0.0005": (52.06, 62.76, 41.51, 202.39e9), "0.02": (50.79, 62.25, 39.71, 181.64e9)},
        ),
        "cityscapes": (
            cityscapes(),
            "Cityscapes val",
            (1024, 2048),
            {"0.003": (64.18, 80.49, 39.64, 507.51e9), "0.01": (62.09, 79.58, 36.04, 439.67e9)},
        ),
    }
    published = {
        variant.name: variant
        for name, (classes, dataset, sides, trained) in sets.items()
        for variant in (
            _variant(name, classes, dataset, sides, beta, figures)
            for beta, figures in trained.items()
        )
    }
    return {"demo": _demo(), **published}


def _demo() -> Variant:
    return Variant(
        "demo",
        config={
            "embed_dim": 12,
            "depths": (1, 1, 1, 1),
            "num_heads": (1, 2, 4, 8),
            "window_size": 4,
            "dim": 32,
            "heads": 2,
            "encoder_layers": 6,
            "encoder_ffn": 64,
            "decoder_layers": 2,
            "decoder_ffn": 64,
            "num_queries": 10,
            "first_exit": 2,
            "num_classes": len(segmented.CLASSES),
        },
        image=ImageInput(resize="fit", resize_to=segmented.SIZE, max_side=segmented.SIZE),
        labels=segmented.CLASSES,
        segmentation="panoptic",
        things=tuple(range(1, len(segmented.CLASSES))),
        thresholds=asdict(Merging(score=0.5)),
        parameters={"depth": depth_parameter(2, 6)},
        demo=True,
    )


def _variant(
    name: str,
    classes: Classes,
    dataset: str,
    sides: tuple[int, int],
    beta: str,
    figures: tuple[float, float, float, float],
) -> Variant:
    *scores, flops = figures
    return Variant(
        f"{name}-swin-tiny-{beta}",
        config=_SWIN_TINY | {"num_classes": len(classes.labels)},
        image=ImageInput(resize="fit", resize_to=sides[0], max_side=sides[1]),
        labels=classes.labels,
        segmentation="panoptic",
        things=classes.things,
        thresholds=asdict(Merging()),
        parameters={"depth": depth_parameter(2, 6)},
        metrics=tuple(
            Metric(
                name=metric,
                value=value,
                dataset=dataset,
                origin="published",
                note=f"gate trained with beta {beta}",
            )
            for metric, value in zip(("PQ", "mIoU", "AP"), scores, strict=True)
        ),
        flops=round(flops),
        notes=(
            "The authors' checkpoints lie on a disk without stable addresses: download one by hand, then "
            "`vitrine add`. Weights of a plain Mask2Former have no gate and are not trained to exit early.",
        ),
    )


@register
class EcoM2FArchitecture(Architecture):
    """ECO-M2F for panoptic segmentation."""

    slug = "eco-m2f"
    title = "ECO-M2F"
    task = Task.SEGMENTATION
    paper = Paper(
        slug="eco-m2f",
        title="Efficient Transformer Encoders for Mask2Former-style models",
        year=2024,
        arxiv="2404.15244",
    )
    origin = "library"
    licence = Licence(
        code="NEC Laboratories evaluation licence",
        weights="NEC Laboratories evaluation licence (non-commercial, by signed agreement)",
        commercial=False,
    )
    variants = _variants()
    max_batch = 8
    preferred_batches = (2, 4, 8)

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        from models.segmentation._eco_m2f_network import EcoSegmenter

        return EcoSegmenter(config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Map the official names, and take queries, keys and values apart."""
        return official_to_own(unwrapped(checkpoint))

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        from models.segmentation._eco_m2f_network import EcoSegmenter

        assert isinstance(network, EcoSegmenter)
        network.merging, network.things = Merging(**card.thresholds), card.things
        return Segmenter(network, card, device)
