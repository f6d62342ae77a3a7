"""ConvNeXt: A ConvNet for the 2020s (https://arxiv.org/abs/2201.03545).

A ResNet brought step by step to the design of a Swin Transformer, without attention: 7x7 depthwise
convolution, LayerNorm over channels, a four times wider pair of linear layers with GELU between them
and a gain per channel (layer scale). The staged network is timm's; the isotropic one
(section 3.3 of the paper: 16x16 patches, one width, no stages, no layer scale) is built here from
timm's block. Weights are those of the authors, whose names `translate` maps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import nn

from models import imagenet
from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

PUBLISHED = "https://dl.fbaipublicfiles.com/convnext"

# name: (long name, depths, widths, {resolution: multiply-adds}, {training: top-1 of ImageNet-1k by resolution}),
# as in the authors' list of models. Training `22k-1k`: ImageNet-22k, then fine-tuned on 1k.
_STAGED: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[int, float], Any]] = {
    "tiny": (
        "ConvNeXt-T",
        (3, 3, 9, 3),
        (96, 192, 384, 768),
        {224: 4.5e9, 384: 13.1e9},
        {"1k": {224: 82.1}, "22k-1k": {224: 82.9, 384: 84.1}},
    ),
    "small": (
        "ConvNeXt-S",
        (3, 3, 27, 3),
        (96, 192, 384, 768),
        {224: 8.7e9, 384: 25.5e9},
        {"1k": {224: 83.1}, "22k-1k": {224: 84.6, 384: 85.8}},
    ),
    "base": (
        "ConvNeXt-B",
        (3, 3, 27, 3),
        (128, 256, 512, 1024),
        {224: 15.4e9, 384: 45.0e9},
        {"1k": {224: 83.8, 384: 85.1}, "22k-1k": {224: 85.8, 384: 86.8}},
    ),
    "large": (
        "ConvNeXt-L",
        (3, 3, 27, 3),
        (192, 384, 768, 1536),
        {224: 34.4e9, 384: 101.0e9},
        {"1k": {224: 84.3, 384: 85.5}, "22k-1k": {224: 86.6, 384: 87.5}},
    ),
    "xlarge": (
        "ConvNeXt-XL",
        (3, 3, 27, 3),
        (256, 512, 1024, 2048),
        {224: 60.9e9, 384: 179.0e9},
        {"22k-1k": {224: 87.0, 384: 87.8}},
    ),
}
# name: (depth, width, multiply-adds at 224, top-1 of ImageNet-1k)
_ISOTROPIC = {
    "small": (18, 384, 4.3e9, 78.7),
    "base": (18, 768, 16.9e9, 82.0),
    "large": (36, 1024, 59.7e9, 82.6),
}


class IsotropicConvNeXt(nn.Module):
    """ConvNeXt without stages: 16x16 patches, then blocks of one width. Maps [B, 3, H, W] to logits [B, classes]."""

    def __init__(
        self, depth: int, dim: int, layer_scale: float | None, num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, kernel_size=16, stride=16)
        self.blocks = nn.Sequential(
            *(ConvNeXtBlock(dim, ls_init_value=layer_scale) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(image))  # B, dim, H/16, W/16
        return self.head(self.norm(x.mean((2, 3))))


def official_to_timm(name: str) -> str:
    """Return timm's name of an entry of the authors' checkpoints; timm's own names stay as they are.

    The isotropic network keeps its names but for those inside the blocks.
    """
    name = re.sub(r"\bdwconv\b", "conv_dw", name)
    name = re.sub(r"\bpwconv([12])\b", r"mlp.fc\1", name)
    name = re.sub(r"^downsample_layers\.0\.", "stem.", name)
    name = re.sub(r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample.", name)
    return re.sub(r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2.", name)


def _file(name: str, training: str, size: int) -> Source:
    # Of the files of one training, only some hold an average of the weights, and say so.
    averaged = (training == "1k" and size == 224) or (name == "xlarge" and training == "22k-1k")
    suffix = "_ema" if averaged else ""
    return Source(f"{PUBLISHED}/convnext_{name}_{training.replace('-', '_')}_{size}{suffix}.pth")


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "depths": (2, 2, 2, 2),
                "dims": (24, 48, 80, 128),
                "layer_scale": 1.0,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
            default=True,
        )
    ]
    for name, (title, depths, dims, flops, trainings) in _STAGED.items():
        config = {"depths": depths, "dims": dims, "layer_scale": 1e-6, "num_classes": 1000}
        for training, scores in trainings.items():
            variants += [
                Variant(
                    f"{name}-{training}-{size}",
                    config=config,
                    image=imagenet.evaluation(size) if size < 384 else imagenet.squashed(size),
                    labels=imagenet.labels(),
                    sources=(_file(name, training, size),),
                    metrics=imagenet.top1(score, f"{title}, {training}, {size}x{size}"),
                    flops=int(flops[size]),
                )
                for size, score in scores.items()
            ]
        variants.append(
            Variant(
                f"{name}-22k",
                config=config | {"num_classes": 21841},
                image=imagenet.evaluation(224),
                labels=imagenet.labels("imagenet-22k"),
                sources=(_file(name, "22k", 224),),
                flops=int(flops[224]),
                notes=(
                    "Made to be fine-tuned; the authors publish no accuracy for these classes.",
                ),
            )
        )
    variants += [
        Variant(
            f"isotropic-{name}",
            config={"depth": depth, "dim": dim, "layer_scale": None, "num_classes": 1000},
            image=imagenet.evaluation(224),
            labels=imagenet.labels(),
            sources=(_file(f"iso_{name}", "1k", 224),),
            metrics=imagenet.top1(score, "isotropic, 1k, 224x224"),
            flops=int(flops),
        )
        for name, (depth, dim, flops, score) in _ISOTROPIC.items()
    ]
    return {variant.name: variant for variant in variants}


@register
class ConvNeXtArchitecture(Architecture):
    """ConvNeXt for the classification of images."""

    slug = "convnext"
    title = "ConvNeXt"
    task = Task.CLASSIFICATION
    paper = Paper(slug="convnext", title="A ConvNet for the 2020s", year=2022, arxiv="2201.03545")
    origin = "library"
    licence = Licence(code="MIT", weights="MIT")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the staged network (`depths`, `dims`) or the isotropic one (`depth`, `dim`)."""
        if "depth" in config:
            return IsotropicConvNeXt(
                config["depth"], config["dim"], config["layer_scale"], config["num_classes"]
            )
        return ConvNeXt(
            num_classes=config["num_classes"],
            depths=tuple(config["depths"]),
            dims=tuple(config["dims"]),
            ls_init_value=config["layer_scale"],
        )

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Map the authors' names to timm's; a checkpoint with timm's names comes through unchanged."""
        state = {official_to_timm(name): value for name, value in unwrapped(checkpoint).items()}
        if "depth" in config:
            return state
        tail = {"norm": "head.norm", "head": "head.fc"}
        for part in ("norm.weight", "norm.bias", "head.weight", "head.bias"):
            if part in state:
                module, _, leaf = part.partition(".")
                state[f"{tail[module]}.{leaf}"] = state.pop(part)
        return state

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
