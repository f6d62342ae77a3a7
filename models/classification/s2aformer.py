"""S2AFormer: Strip Self-Attention for Efficient Vision Transformer (https://arxiv.org/abs/2505.22195).

Four stages of blocks in which a depthwise convolution, attention, a convolutional module for local detail and
an MLP follow each other. The attention is made cheap on both sides: keys and values come from a
smaller map, and queries and keys are only a few channels wide, while values keep their width. No code, weights or
sizes are published; order and purpose of the parts are the paper's, all that it leaves open (widths, depths,
ratios, kernel sizes, kinds of normalisation) is chosen here, and so are the names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import LayerNorm2d, Mlp
from torch import nn

from models import imagenet
from models.architecture import Architecture, Variant
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task


class StripAttention(nn.Module):
    """Attention with narrow queries and keys over a reduced map, [B, dim, H, W] to the same.

    `strip`: width of queries and keys per head. `reduction`: keys and values come from a map that a
    convolution makes smaller by this factor along both sides.
    """

    def __init__(self, dim: int, heads: int, strip: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Conv2d(dim, heads * strip, 1)
        self.reduce = (
            nn.Sequential(nn.Conv2d(dim, dim, reduction, stride=reduction), LayerNorm2d(dim))
            if reduction > 1
            else nn.Identity()
        )
        self.key = nn.Conv2d(dim, heads * strip, 1)
        self.value = nn.Conv2d(dim, dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reduced = self.reduce(x)  # B, C, H/r, W/r
        query, key, value = (
            part.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)  # B, heads, N, width
            for part in (self.query(x), self.key(reduced), self.value(reduced))
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(2, 3).reshape(x.shape))


class LocalInteraction(nn.Sequential):
    """Detail from each position's neighbours: 1x1, 3x3 depthwise and 1x1 convolution, [B, dim, H, W] to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__(
            nn.Conv2d(dim, dim, 1),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )


class HybridPerceptionBlock(nn.Module):
    """The paper's block, [B, dim, H, W] to the same; each of its four parts is added to what it reads."""

    def __init__(
        self, dim: int, heads: int, strip: int, reduction: int, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = LayerNorm2d(dim)
        self.attention = StripAttention(dim, heads, strip, reduction)
        self.norm2 = LayerNorm2d(dim)
        self.local = LocalInteraction(dim)
        self.norm3 = LayerNorm2d(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), use_conv=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.position(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.local(self.norm2(x))
        return x + self.mlp(self.norm3(x))


class S2AFormer(nn.Module):
    """Maps [B, 3, H, W] to logits [B, num_classes]. Per stage: `dims`, `depths`, `heads`, `strips`, `reductions`."""

    def __init__(
        self,
        stem_dim: int,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        strips: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_convolution(3, stem_dim, stride=2),
            *_convolution(stem_dim, stem_dim),
            *_convolution(stem_dim, stem_dim),
        )
        stages = []
        previous = stem_dim
        for dim, depth, *sizes in zip(dims, depths, heads, strips, reductions, strict=True):
            patches = (nn.Conv2d(previous, dim, 3, stride=2, padding=1), LayerNorm2d(dim))
            blocks = (HybridPerceptionBlock(dim, *sizes) for _ in range(depth))
            stages.append(nn.Sequential(*patches, *blocks))
            previous = dim
        self.stages = nn.ModuleList(stages)
        self.norm = LayerNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the stages' maps, at 1/4, 1/8, 1/16 and 1/32 of the image's sides."""
        x = self.stem(image)  # B, stem_dim, H/2, W/2
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.features(image)[-1]).mean((2, 3)))


def _convolution(in_dim: int, dim: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_dim, dim, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(dim),
        nn.GELU(),
    )


_INFERRED = "Sizes are this project's own: the paper's are not known, and neither are weights."

_VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            "demo",
            config={
                "stem_dim": 16,
                "dims": (24, 40, 72, 112),
                "depths": (1, 1, 2, 1),
                "heads": (1, 2, 3, 4),
                "strips": (6, 5, 6, 7),
                "reductions": (4, 2, 1, 1),
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            notes=(_INFERRED,),
            demo=True,
        ),
        Variant(
            "inferred",
            config={
                "stem_dim": 32,
                "dims": (48, 96, 192, 384),
                "depths": (2, 2, 6, 2),
                "heads": (1, 2, 4, 8),
                "strips": (12, 12, 12, 12),
                "reductions": (8, 4, 2, 1),
                "num_classes": 1000,
            },
            image=imagenet.evaluation(224),
            labels=imagenet.labels(),
            notes=(_INFERRED,),
        ),
    )
}


@register
class S2AFormerArchitecture(Architecture):
    """S2AFormer for the classification of images."""

    slug = "s2aformer"
    title = "S2AFormer"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="s2aformer",
        title="S2AFormer: Strip Self-Attention for Efficient Vision Transformer",
        year=2025,
        arxiv="2505.22195",
    )
    origin = "after the paper"
    licence = Licence(code="none published", weights="none published")
    variants = _VARIANTS

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        return S2AFormer(**config)

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
