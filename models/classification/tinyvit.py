"""TinyViT: Fast Pretraining Distillation for Small Vision Transformers (https://arxiv.org/abs/2207.10666).

Four stages with halving maps. The first consists of inverted bottlenecks (a depthwise convolution between two 1x1
convolutions); the others attend within windows that are never shifted: a depthwise convolution after every
attention, without a shortcut around it, carries information from window to window. A learned
bias per head depends on the absolute distance in rows and columns. The paper's subject, distillation from
stored predictions of a large teacher, has no part in serving. The network is timm's, where a stage
starts with the halving that ends the stage before in the authors' code; `translate` maps their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.tiny_vit import TinyVit
from torch import nn
from torch.nn import functional

from models import imagenet
from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

PUBLISHED = "https://github.com/wkcn/TinyViT-model-zoo/releases/download/checkpoints"

# name: (widths, heads; the first stage has no attention, {resolution: multiply-adds},
# {training: {resolution: top-1 of ImageNet-1k}}).
# Training `22k-1k`: distilled on ImageNet-22k, then fine-tuned on 1k.
_SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[int, float], Any]] = {
    "5m": (
        (64, 128, 160, 320),
        (2, 4, 5, 10),
        {224: 1.3e9},
        {"1k": {224: 79.1}, "22k-1k": {224: 80.7}},
    ),
    "11m": (
        (64, 128, 256, 448),
        (2, 4, 8, 14),
        {224: 2.0e9},
        {"1k": {224: 81.5}, "22k-1k": {224: 83.2}},
    ),
    "21m": (
        (96, 192, 384, 576),
        (3, 6, 12, 18),
        {224: 4.3e9, 384: 13.8e9, 512: 27.0e9},
        {"1k": {224: 83.1}, "22k-1k": {224: 84.8, 384: 86.2, 512: 86.5}},
    ),
}
# Sides of the windows by the resolution of the picture.
_WINDOWS = {224: (7, 7, 14, 7), 384: (12, 12, 24, 12), 512: (16, 16, 32, 16)}


def official_to_timm(name: str) -> str:
    """Return timm's name of an entry of the authors' checkpoints; timm's own names stay as they are."""
    name = re.sub(
        r"^layers\.(\d+)\.downsample\.",
        lambda found: f"stages.{int(found[1]) + 1}.downsample.",
        name,
    )
    name = re.sub(r"^layers\.", "stages.", name)
    name = name.replace("patch_embed.seq.0.", "patch_embed.conv1.")
    name = name.replace("patch_embed.seq.2.", "patch_embed.conv2.")
    name = re.sub(r"\.c\.(weight|bias)$", r".conv.\1", name)
    name = re.sub(r"^norm_head\.", "head.norm.", name)
    return re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)


def resized_biases(table: torch.Tensor, window: int) -> torch.Tensor:
    """Return attention biases [heads, w * w] for windows of another side, [heads, window * window].

    A table is a picture of w rows and w columns of distances, scaled bicubically.
    """
    side = round(table.shape[1] ** 0.5)
    if side == window:
        return table
    picture = table.float().reshape(1, -1, side, side)
    resized = functional.interpolate(picture, (window, window), mode="bicubic")
    return resized[0].flatten(1).to(table.dtype)


def _file(name: str, training: str, size: int) -> Source:
    suffix = {"1k": "1k", "22k": "22k_distill", "22k-1k": "22kto1k_distill"}[training]
    if size > 224:
        suffix = f"22kto1k_{size}_distill"
    return Source(f"{PUBLISHED}/tiny_vit_{name}_{suffix}.pth")


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "dims": (24, 48, 80, 112),
                "depths": (1, 1, 2, 1),
                "heads": (1, 2, 4, 4),
                "windows": (4, 4, 4, 2),
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    for name, (dims, heads, flops, trainings) in _SIZES.items():
        config = {"dims": dims, "depths": (2, 2, 6, 2), "heads": heads, "num_classes": 1000}
        for training, scores in trainings.items():
            variants += [
                Variant(
                    f"{name}-{training}-{size}",
                    config=config | {"windows": _WINDOWS[size]},
                    image=imagenet.evaluation(size) if size == 224 else imagenet.squashed(size),
                    labels=imagenet.labels(),
                    sources=(_file(name, training, size),),
                    metrics=imagenet.top1(
                        score, f"TinyViT-{name.upper()}, {training}, {size}x{size}"
                    ),
                    flops=int(flops[size]),
                )
                for size, score in scores.items()
            ]
        variants.append(
            Variant(
                f"{name}-22k-224",
                config=config | {"windows": _WINDOWS[224], "num_classes": 21841},
                image=imagenet.evaluation(224),
                labels=imagenet.labels("imagenet-22k"),
                sources=(_file(name, "22k", 224),),
                flops=int(flops[224]),
                notes=(
                    "Made to be fine-tuned; the authors publish no accuracy for these classes.",
                ),
            )
        )
    return {variant.name: variant for variant in variants}


@register
class TinyViTArchitecture(Architecture):
    """TinyViT for the classification of images."""

    slug = "tinyvit"
    title = "TinyViT"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="tinyvit",
        title="TinyViT: Fast Pretraining Distillation for Small Vision Transformers",
        year=2022,
        arxiv="2207.10666",
    )
    origin = "library"
    licence = Licence(code="MIT", weights="MIT")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network; maps that the windows do not divide are padded with zeros."""
        return TinyVit(
            num_classes=config["num_classes"],
            embed_dims=tuple(config["dims"]),
            depths=tuple(config["depths"]),
            num_heads=tuple(config["heads"]),
            window_sizes=tuple(config["windows"]),
            mlp_ratio=config.get("mlp_ratio", 4.0),
            mbconv_expand_ratio=config.get("expansion", 4.0),
            local_conv_size=config.get("kernel", 3),
            drop_path_rate=0.0,
        )

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Map the authors' names to timm's, whose own come through unchanged.

        Tables of biases made for other windows are resized; the index into them follows from the
        configuration, and a checkpoint's copy is dropped.
        """
        state: StateDict = {}
        for name, value in unwrapped(checkpoint).items():
            if name.endswith("attention_bias_idxs"):
                continue
            name = official_to_timm(name)
            if name.endswith("attention_biases"):
                value = resized_biases(value, config["windows"][int(name.split(".")[1])])
            state[name] = value
        return state

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
