"""Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial Scenarios
(https://arxiv.org/abs/2207.05501).

A hybrid of operations that run fast on accelerators: BatchNorm and ReLU throughout. Most blocks mix
neighbours by a grouped 3x3 convolution; a block at the end of every group is a transformer: three quarters
of its channels attend globally (keys and values averaged over runs of consecutive tokens), and the
rest convolve what attention found. The blocks are timm's; they are put together here, as timm fixes the
widths of the stages. `translate` maps the authors' flat list of blocks to stages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers.classifier import ClassifierHead
from timm.models.nextvit import (
    ConvNormAct,
    NextConvBlock,
    NextStage,
    NextTransformerBlock,
)
from torch import nn

from models import imagenet
from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

# Blocks of the third stage come in groups of this many, the last of which is a transformer's.
GROUP = 5

# What the published networks share: widths by stage of convolution and of transformer blocks.
_COMMON: dict[str, Any] = {
    "stem": (64, 32, 64),
    "widths": (96, 192, 384, 768),
    "mixed_widths": (None, 256, 512, 1024),
    "strides": (1, 2, 2, 2),
    "reductions": (8, 4, 2, 1),
    "head_width": 32,
    "attention_share": 0.75,
    "num_classes": 1000,
}
# name: (letter, blocks of the third stage, {training: {resolution: top-1 of ImageNet-1k}})
# Training `6m-1k`: with the labels that a teacher gave to six million further pictures (SSLD).
_SIZES: dict[str, tuple[str, int, dict[str, dict[int, float]]]] = {
    "small": ("S", 10, {"1k": {224: 82.5, 384: 83.6}, "6m-1k": {224: 84.8, 384: 85.8}}),
    "base": ("B", 20, {"1k": {224: 83.2, 384: 84.3}, "6m-1k": {224: 85.1, 384: 86.1}}),
    "large": ("L", 30, {"1k": {224: 83.6, 384: 84.7}, "6m-1k": {224: 85.4, 384: 86.4}}),
}
_FLOPS = {
    "small": {224: 5.8e9, 384: 17.3e9},
    "base": {224: 8.3e9, 384: 24.6e9},
    "large": {224: 10.8e9, 384: 32.0e9},
}


class NextViT(nn.Module):
    """Stem, four stages of blocks, a last normalisation and a linear classifier.

    Maps [B, 3, H, W] to logits [B, classes]; `H` and `W` are multiples of 32. `mixed_widths` are those of
    the transformer blocks (None: the stage has none), `reductions` the sides whose square many
    tokens are averaged into one key.
    """

    def __init__(
        self,
        *,
        stem: Sequence[int],
        depths: Sequence[int],
        widths: Sequence[int],
        mixed_widths: Sequence[int | None],
        strides: Sequence[int],
        reductions: Sequence[int],
        head_width: int,
        attention_share: float,
        num_classes: int,
    ) -> None:
        super().__init__()
        ins, outs = (3, *stem), (*stem, stem[-1])
        self.stem = nn.Sequential(
            *(ConvNormAct(ins[i], outs[i], stride=stride) for i, stride in enumerate((2, 1, 1, 2)))
        )  # B, stem[-1], H/4, W/4
        width = stem[-1]
        stages = []
        for i, depth in enumerate(depths):
            mixed_width = mixed_widths[i]
            block_widths = [widths[i]] * depth
            mixed = set()
            if mixed_width is not None:
                mixed = _mixed_blocks(i, depth)
                block_widths = [mixed_width if n in mixed else widths[i] for n in range(depth)]
            stages.append(
                NextStage(
                    width,
                    block_widths,
                    [NextTransformerBlock if n in mixed else NextConvBlock for n in range(depth)],
                    stride=strides[i],
                    sr_ratio=reductions[i],
                    mix_block_ratio=attention_share,
                    head_dim=head_width,
                )
            )
            width = block_widths[-1]
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(width)
        self.head = ClassifierHead(width, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.tail(self.stages(self.stem(image)))

    def tail(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of the last stage's map [B, C, H/32, W/32]."""
        logits: torch.Tensor = self.head(self.norm(features))
        return logits


def _mixed_blocks(stage: int, depth: int) -> set[int]:
    """Return which blocks of a stage are transformer blocks: the last one of each group."""
    group = GROUP if stage == 2 else depth
    return set(range(group - 1, depth, group))


def official_to_timm(name: str, depths: Sequence[int]) -> str:
    """Return timm's name of an entry of the authors' checkpoints; timm's own names stay as they are."""
    found = re.match(r"features\.(\d+)\.(.*)", name)
    if found:
        block, stage = int(found[1]), 0
        while block >= depths[stage]:
            block -= depths[stage]
            stage += 1
        name = f"stages.{stage}.blocks.{block}.{found[2]}"
    name = re.sub(r"\bmlp\.conv([12])\.", r"mlp.fc\1.", name)
    return name.replace("proj_head.0.", "head.fc.")


def _file(name: str, training: str, size: int) -> Source:
    # The authors' own files lie on a disk without stable addresses; timm publishes copies.
    data = {"1k": "in1k", "6m-1k": "ssld_6m_in1k"}[training]
    suffix = "" if size == 224 else f"_{size}"
    return Source(f"hf://timm/nextvit_{name}.bd_{data}{suffix}/model.safetensors")


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "stem": (16, 16, 32),
                "depths": (1, 2, 5, 2),
                "widths": (32, 32, 32, 96),
                "mixed_widths": (None, 64, 64, 128),
                "strides": (1, 2, 2, 2),
                "reductions": (8, 4, 2, 1),
                "head_width": 16,
                "attention_share": 0.5,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    for name, (letter, depth, trainings) in _SIZES.items():
        variants += [
            Variant(
                f"{name}-{training}-{size}",
                config=_COMMON | {"depths": (3, 4, depth, 3)},
                image=imagenet.evaluation(size),
                labels=imagenet.labels(),
                sources=(_file(name, training, size),),
                metrics=imagenet.top1(score, f"Next-ViT-{letter}, {training}, {size}x{size}"),
                flops=int(_FLOPS[name][size]),
            )
            for training, scores in trainings.items()
            for size, score in scores.items()
        ]
    return {variant.name: variant for variant in variants}


@register
class NextViTArchitecture(Architecture):
    """Next-ViT for the classification of images."""

    slug = "next-vit"
    title = "Next-ViT"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="next-vit",
        title=(
            "Next-ViT: Next Generation Vision Transformer for Efficient Deployment "
            "in Realistic Industrial Scenarios"
        ),
        year=2022,
        arxiv="2207.05501",
    )
    origin = "library"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        return NextViT(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Map the authors' names to timm's; a checkpoint with timm's names comes through unchanged."""
        return {
            official_to_timm(name, config["depths"]): value
            for name, value in unwrapped(checkpoint).items()
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
