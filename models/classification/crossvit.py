"""CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification (https://arxiv.org/abs/2103.14899).

Two vision transformers look at the same picture, one in small patches with few channels, one in large
patches with many. Only their class tokens meet: after every few blocks each of them, projected to the
other branch's width, attends to that branch's patches and is projected back. Each branch
ends in logits of its own, and the two are averaged. The network is timm's; weights are those of the
authors, whose names differ for positions and class tokens only.

The published names count the input of the large patches (224, 384). The network takes the picture
at the size of the small patches (240, 408) and scales it down itself for the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from timm.models.crossvit import CrossVit
from torch import nn

from models import imagenet
from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

PUBLISHED = "https://github.com/IBM/CrossViT/releases/download/weights-0.1"

# name: (widths of the two branches, blocks of the large patches' branch between two meetings, heads, MLP ratio)
_SIZES: dict[str, tuple[tuple[int, int], int, int, int]] = {
    "tiny": ((96, 192), 4, 3, 4),
    "small": ((192, 384), 4, 6, 4),
    "base": ((384, 768), 4, 12, 4),
    "9": ((128, 256), 3, 4, 3),
    "15": ((192, 384), 5, 6, 3),
    "18": ((224, 448), 6, 7, 3),
}
# variant: (size, convolutions before the patches ("dagger" in the paper), resolution in the published name,
# multiply-adds, top-1 of ImageNet-1k)
_PUBLISHED: dict[str, tuple[str, bool, int, float, float]] = {
    "tiny": ("tiny", False, 224, 1.6e9, 73.4),
    "small": ("small", False, 224, 5.6e9, 81.0),
    "base": ("base", False, 224, 21.2e9, 82.2),
    "9": ("9", False, 224, 1.8e9, 73.9),
    "15": ("15", False, 224, 5.8e9, 81.5),
    "18": ("18", False, 224, 9.0e9, 82.5),
    "9-dagger": ("9", True, 224, 2.0e9, 77.1),
    "15-dagger": ("15", True, 224, 6.1e9, 82.3),
    "18-dagger": ("18", True, 224, 9.5e9, 82.8),
    "15-dagger-384": ("15", True, 384, 21.4e9, 83.5),
    "18-dagger-384": ("18", True, 384, 32.4e9, 83.9),
}


def official_to_timm(name: str) -> str:
    """Return timm's name of an entry of the authors' checkpoints; timm's own names stay as they are."""
    return re.sub(r"^(pos_embed|cls_token)\.(\d+)$", r"\1_\2", name)


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "image_sizes": (64, 64),
                "patch_sizes": (8, 16),
                "dims": (48, 96),
                # Per group: blocks of either branch, then cross-attention blocks (0: one, unnumbered).
                "depths": ((1, 1, 0), (1, 1, 0)),
                "heads": (3, 3),
                "mlp_ratios": (3, 3),
                "convolutions": False,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    for name, (size, convolutions, resolution, flops, top1) in _PUBLISHED.items():
        dims, depth, heads, mlp_ratio = _SIZES[size]
        input_size = {224: 240, 384: 408}[resolution]
        file = f"crossvit_{size}{'_dagger' if convolutions else ''}_{resolution}.pth"
        variants.append(
            Variant(
                name,
                config={
                    "image_sizes": (input_size, resolution),
                    "patch_sizes": (12, 16),
                    "dims": dims,
                    "depths": ((1, depth, 0),) * 3,
                    "heads": (heads, heads),
                    "mlp_ratios": (mlp_ratio, mlp_ratio),
                    "convolutions": convolutions,
                    "num_classes": 1000,
                },
                image=imagenet.evaluation(input_size, crop=0.875 if resolution == 224 else 1.0),
                labels=imagenet.labels(),
                sources=(Source(f"{PUBLISHED}/{file}"),),
                metrics=imagenet.top1(top1, f"CrossViT-{name}"),
                flops=int(flops),
            )
        )
    return {variant.name: variant for variant in variants}


@register
class CrossViTArchitecture(Architecture):
    """CrossViT for the classification of images."""

    slug = "crossvit"
    title = "CrossViT"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="crossvit",
        title="CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification",
        year=2021,
        arxiv="2103.14899",
    )
    origin = "library"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network; it takes pictures of the first of `image_sizes`."""
        sizes = config["image_sizes"]
        return CrossVit(
            img_size=sizes[0],
            # timm truncates the product of size and scale: exact fractions give the sizes back.
            img_scale=tuple(Fraction(size, sizes[0]) for size in sizes),
            patch_size=tuple(config["patch_sizes"]),
            num_classes=config["num_classes"],
            embed_dim=tuple(config["dims"]),
            depth=tuple(tuple(group) for group in config["depths"]),
            num_heads=tuple(config["heads"]),
            mlp_ratio=tuple(config["mlp_ratios"]),
            multi_conv=config["convolutions"],
            qkv_bias=config.get("qkv_bias", True),
            norm_layer=partial(nn.LayerNorm, eps=config.get("norm_eps", 1e-6)),
        )

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Map the authors' names to timm's; a checkpoint with timm's names comes through unchanged."""
        return {official_to_timm(name): value for name, value in unwrapped(checkpoint).items()}

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
