"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (https://arxiv.org/abs/2103.14030).

Attention inside small square windows of a map that is halved from stage to stage while its width doubles.
In every second block the windows lie half a window further down and right, so that neighbours of two windows
meet; a learned bias per head tells how far a key lies from its query. The network is timm's, which
merges patches at the start of a stage where the authors do it at the end of the stage before;
`translate` maps their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from torch import nn

from models import imagenet
from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

PUBLISHED = "https://github.com/SwinTransformer/storage/releases/download"

# name: (letter, width of the first stage, depths, heads)
_SIZES: dict[str, tuple[str, int, tuple[int, ...], tuple[int, ...]]] = {
    "tiny": ("T", 96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": ("S", 96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": ("B", 128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": ("L", 192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
_WINDOW = {224: 7, 384: 12}
_FLOPS = {
    "tiny": {224: 4.5e9},
    "small": {224: 8.7e9},
    "base": {224: 15.4e9, 384: 47.1e9},
    "large": {224: 34.5e9, 384: 103.9e9},
}
# name: {training: {resolution: top-1 of ImageNet-1k}}. Training `22k-1k`: ImageNet-22k, then fine-tuned on 1k.
_TOP1: dict[str, dict[str, dict[int, float]]] = {
    "tiny": {"1k": {224: 81.2}, "22k-1k": {224: 80.9}},
    "small": {"1k": {224: 83.2}, "22k-1k": {224: 83.2}},
    "base": {"1k": {224: 83.5, 384: 84.5}, "22k-1k": {224: 85.2, 384: 86.4}},
    "large": {"22k-1k": {224: 86.3, 384: 87.3}},
}


def official_to_timm(name: str, *, merges_at_end: bool) -> str:
    """Return timm's name of an entry of the authors' checkpoints.

    `merges_at_end`: the checkpoint holds the merging of patches in the stage that it ends.
    """
    if merges_at_end:
        name = re.sub(
            r"^layers\.(\d+)\.downsample\.",
            lambda found: f"layers.{int(found[1]) + 1}.downsample.",
            name,
        )
    return re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)


def _file(name: str, training: str, size: int) -> Source:
    # The two small sizes were trained on ImageNet-22k later, and are called differently.
    later = name in ("tiny", "small") and training != "1k"
    suffix = {"1k": "", "22k": "_22k", "22k-1k": "_22kto1k"}[training]
    if later and training == "22k-1k":
        suffix += "_finetune"
    release = "v1.0.8" if later else "v1.0.0"
    return Source(
        f"{PUBLISHED}/{release}/swin_{name}_patch4_window{_WINDOW[size]}_{size}{suffix}.pth"
    )


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "image_size": 64,
                "dim": 24,
                "depths": (2, 4, 2),
                "heads": (2, 4, 8),
                "window": 4,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    for name, (letter, dim, depths, heads) in _SIZES.items():
        for size, flops in _FLOPS[name].items():
            config = {
                "image_size": size,
                "dim": dim,
                "depths": depths,
                "heads": heads,
                "window": _WINDOW[size],
                "num_classes": 1000,
            }
            image = imagenet.evaluation(size) if size < 384 else imagenet.squashed(size)
            variants += [
                Variant(
                    f"{name}-{training}-{size}",
                    config=config,
                    image=image,
                    labels=imagenet.labels(),
                    sources=(_file(name, training, size),),
                    metrics=imagenet.top1(
                        scores[size], f"Swin-{letter}, {training}, {size}x{size}"
                    ),
                    flops=int(flops),
                )
                for training, scores in _TOP1[name].items()
                if size in scores
            ]
            variants.append(
                Variant(
                    f"{name}-22k-{size}",
                    config=config | {"num_classes": 21841},
                    image=image,
                    labels=imagenet.labels("imagenet-22k"),
                    sources=(_file(name, "22k", size),),
                    flops=int(flops),
                    notes=(
                        "Made to be fine-tuned; the authors publish no accuracy for these classes.",
                    ),
                )
            )
    return {variant.name: variant for variant in variants}


@register
class SwinArchitecture(Architecture):
    """Swin Transformer for the classification of images."""

    slug = "swin"
    title = "Swin Transformer"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="swin",
        title="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
        year=2021,
        arxiv="2103.14030",
    )
    origin = "library"
    licence = Licence(code="MIT", weights="MIT")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network for square pictures of `image_size`; windows never exceed a stage's map."""
        return SwinTransformer(
            img_size=config["image_size"],
            patch_size=config.get("patch_size", 4),
            num_classes=config["num_classes"],
            embed_dim=config["dim"],
            depths=tuple(config["depths"]),
            num_heads=tuple(config["heads"]),
            window_size=config["window"],
            mlp_ratio=config.get("mlp_ratio", 4.0),
            qkv_bias=config.get("qkv_bias", True),
            drop_path_rate=0.0,
            norm_layer=partial(nn.LayerNorm, eps=config.get("norm_eps", 1e-5)),
        )

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Map the authors' names to timm's, whose own come through unchanged.

        The tables of relative positions and the masks of shifted windows follow from the
        configuration; a checkpoint's copies are dropped.
        """
        state = unwrapped(checkpoint)
        at_end = any(name.startswith("layers.0.downsample.") for name in state)
        return {
            official_to_timm(name, merges_at_end=at_end): value
            for name, value in state.items()
            if not name.endswith((".relative_position_index", ".attn_mask"))
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
