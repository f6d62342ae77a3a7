"""UniFormer: Unifying Convolution and Self-attention for Visual Recognition (https://arxiv.org/abs/2201.09450).

Four stages of one shape of block: a depthwise convolution that tells positions apart, a mixer of tokens, an MLP.
Early stages, where neighbours repeat each other, mix by a 5x5 depthwise convolution; late ones, where
what belongs together lies far apart, by attention over the whole map. The light networks for mobile
devices pass only the tokens at which a class token looks most through their late blocks. The
networks are written here (`_uniformer_network.py`) with the names of the authors' checkpoints
(https://github.com/Sense-X/UniFormer); those trained with token labelling have a second classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from models import imagenet
from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.classification._uniformer_network import LightUniFormer, UniFormer
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

# name: (letter, depths, widths, patches overlap, {resolution: multiply-adds})
_SIZES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], bool, dict[int, float]]] = {
    "small": ("S", (3, 4, 8, 3), (64, 128, 320, 512), False, {224: 3.6e9, 384: 11.9e9}),
    "small-plus": ("S†", (3, 5, 9, 3), (64, 128, 320, 512), True, {224: 4.2e9, 384: 13.7e9}),
    "base": ("B", (5, 8, 20, 7), (64, 128, 320, 512), False, {224: 8.3e9, 384: 27.2e9}),
    "large": ("L", (5, 10, 24, 7), (128, 192, 448, 640), False, {224: 12.6e9, 384: 39.2e9}),
}
# (size, resolution, width of a head, stages with gains, trained with token labels): top-1 of ImageNet-1k
_PUBLISHED: dict[tuple[str, int, int, tuple[int, ...], bool], float] = {
    ("small", 224, 64, (), False): 82.9,
    ("small-plus", 224, 32, (), False): 83.4,
    ("small-plus", 224, 64, (), False): 83.4,
    ("base", 224, 64, (), False): 83.8,
    ("base", 224, 64, (3, 4), False): 83.9,
    ("small", 224, 32, (), True): 83.4,
    ("small", 224, 64, (), True): 83.4,
    ("small", 384, 32, (), True): 84.6,
    ("small-plus", 224, 32, (), True): 83.9,
    ("small-plus", 224, 64, (), True): 83.6,
    ("small-plus", 384, 32, (), True): 84.9,
    ("base", 224, 32, (), True): 85.1,
    ("base", 224, 64, (), True): 84.8,
    ("base", 384, 32, (), True): 86.0,
    ("large", 224, 64, (1, 2, 3, 4), True): 85.6,
    ("large", 384, 64, (1, 2, 3, 4), True): 86.3,
}
# name: (letters, depths, widths, width of a head, {resolution: (multiply-adds, top-1 of ImageNet-1k)})
_LIGHT: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], int, Any]] = {
    "xxs": (
        "XXS",
        (2, 5, 8, 2),
        (56, 112, 224, 448),
        28,
        {128: (0.43e9, 76.8), 160: (0.67e9, 79.1), 192: (0.96e9, 79.9), 224: (1.3e9, 80.6)},
    ),
    "xs": (
        "XS",
        (3, 5, 9, 3),
        (64, 128, 256, 512),
        32,
        {192: (1.4e9, 81.5), 224: (2.0e9, 82.0)},
    ),
}
_DEFAULTS = (
    "The authors' evaluation of networks trained with token labels leaves crop and normalisation to the "
    "defaults of timm, which have changed since; these are those of their other networks."
)
# Entries of the light networks' checkpoints that serve training only.
_TRAINING = ("norm_cls.", "head_cls.")


def _plain(key: tuple[str, int, int, tuple[int, ...], bool], score: float) -> Variant:
    size, resolution, head_dim, scaled, token_labels = key
    letter, depths, dims, overlapping, flops = _SIZES[size]
    other_heads = head_dim != (32 if token_labels or overlapping else 64) and size != "large"
    name = "-".join(
        part
        for part in (
            size,
            f"dim{head_dim}" if other_heads else "",
            "ls" if scaled else "",
            "tl" if token_labels else "",
            str(resolution),
        )
        if part
    )
    training = "token labels" if token_labels else "1k"
    # The one address that is not a folder to click through; it holds these two.
    shared = not (scaled or token_labels) and size in ("small", "base")
    return Variant(
        name,
        config={
            "depths": depths,
            "dims": dims,
            "head_dim": head_dim,
            "mlp_ratio": 4,
            "overlapping": overlapping,
            "scaled": scaled,
            "token_labels": token_labels,
            "num_classes": 1000,
        },
        image=imagenet.evaluation(resolution),
        labels=imagenet.labels(),
        sources=(Source(f"hf://Sense-X/uniformer_image/uniformer_{size}_in1k.pth"),)
        if shared
        else (),
        metrics=imagenet.top1(
            score,
            f"UniFormer-{letter}, {training}, {resolution}x{resolution}, heads of {head_dim}",
        ),
        flops=int(flops[resolution]),
        notes=(_DEFAULTS,) if token_labels else (),
    )


def _light(name: str) -> list[Variant]:
    letters, depths, dims, head_dim, resolutions = _LIGHT[name]
    # The first global block sees all tokens; it makes the first scores.
    shares = ((1, *(0.5,) * (depths[2] - 1)), (0.5,) * depths[3])
    return [
        Variant(
            f"{name}-{size}",
            config={
                "depths": depths,
                "dims": dims,
                "head_dim": head_dim,
                "mlp_ratio": 3,
                "overlapping": True,
                "keep": shares,
                "rate": shares,
                "num_classes": 1000,
            },
            image=imagenet.evaluation(size),
            labels=imagenet.labels(),
            metrics=imagenet.top1(score, f"UniFormer-{letters}, 1k, {size}x{size}"),
            flops=int(flops),
        )
        for size, (flops, score) in resolutions.items()
    ]


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "depths": (1, 2, 2, 1),
                "dims": (24, 48, 72, 120),
                "head_dim": 24,
                "mlp_ratio": 4,
                "overlapping": True,
                "scaled": (),
                "token_labels": False,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        ),
        *(_plain(key, score) for key, score in _PUBLISHED.items()),
        *(variant for name in _LIGHT for variant in _light(name)),
    ]
    return {variant.name: variant for variant in variants}


@register
class UniFormerArchitecture(Architecture):
    """UniFormer for the classification of images."""

    slug = "uniformer"
    title = "UniFormer"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="uniformer",
        title="UniFormer: Unifying Convolution and Self-attention for Visual Recognition",
        year=2022,
        arxiv="2201.09450",
    )
    origin = "own"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network, or the light one where `config` says how many tokens to `keep`."""
        return (LightUniFormer if "keep" in config else UniFormer)(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Open the authors' checkpoint and drop what only training uses; the names stay."""
        return {
            name: value
            for name, value in unwrapped(checkpoint).items()
            if not name.startswith(_TRAINING)
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
