"""ShiftAddViT: Mixture of Multiplication Primitives (https://arxiv.org/abs/2306.06446).

A pyramid vision transformer (PVT or PVT v2) whose multiplications are exchanged for cheaper operations:
attention sums values that binary codes of queries and keys select, and linear layers may multiply by powers of two,
which is a shift of bits. For every token and layer a gate chooses between an ordinary and a
shifting expert. Written after the authors' code (https://github.com/GATECH-EIC/ShiftAddViT), whose names
`translate` maps. The kernels that would save energy are not part of this: for serving, powers of two are
multiplied like any other weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import imagenet
from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.classification._shiftaddvit_network import PyramidV1, PyramidV2, folded
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

_WIDE = (64, 128, 320, 512)
# name: (title, side of the pictures that position tables are made for, widths, depths,
# multiply-adds of the matrix products at 224 without experts)
_PUBLISHED: dict[str, tuple[str, int | None, tuple[int, ...], tuple[int, ...], float]] = {
    "pvt-v2-b0": ("PVT v2-B0", None, (32, 64, 160, 256), (2, 2, 2, 2), 0.54e9),
    "pvt-v2-b1": ("PVT v2-B1", None, _WIDE, (2, 2, 2, 2), 2.05e9),
    "pvt-v2-b2": ("PVT v2-B2", None, _WIDE, (3, 4, 6, 3), 3.89e9),
    "pvt-tiny": ("PVT-Tiny", 224, _WIDE, (2, 2, 2, 2), 1.87e9),
}
_UNPUBLISHED = "The authors publish no weights; checkpoints that their code trained can be added."


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "image_size": None,
                "dims": (24, 40, 56, 80),
                "heads": (1, 2, 2, 4),
                "mlp_ratios": (4, 4, 3, 3),
                "depths": (1, 1, 2, 1),
                "projections": "experts",
                "mlps": "experts",
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    for name, (title, image_size, dims, depths, flops) in _PUBLISHED.items():
        config = {
            "image_size": image_size,
            "dims": dims,
            "heads": (1, 2, 5, 8),
            "mlp_ratios": (8, 8, 4, 4),
            "depths": depths,
            "num_classes": 1000,
        }
        shared = {"image": imagenet.evaluation(224), "labels": imagenet.labels()}
        variants += [
            Variant(
                name,
                config=config | {"projections": "linear", "mlps": "linear"},
                flops=int(flops),
                notes=(f"{title} with attention by additions, without experts.", _UNPUBLISHED),
                **shared,
            ),
            Variant(
                f"{name}-experts",
                config=config | {"projections": "experts", "mlps": "experts"},
                notes=(
                    f"{title} with attention by additions and experts that shift.",
                    "The paper's savings of time and energy need kernels that are not part of this service.",
                    _UNPUBLISHED,
                ),
                **shared,
            ),
        ]
    return {variant.name: variant for variant in variants}


_RENAMED = (
    (r"\.qk_quant\.ksh\.anchor$", ".hash.anchors"),
    (r"\.qk_quant\.ksh\.mvec$", ".hash.means"),
    (r"\.qk_quant\.ksh\.A$", ".hash.matrix"),
    (r"\.gate\.gate\.", ".gate."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
)


@register
class ShiftAddViTArchitecture(Architecture):
    """ShiftAddViT for the classification of images."""

    slug = "shiftaddvit"
    title = "ShiftAddViT"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="shiftaddvit",
        title="ShiftAddViT: Mixture of Multiplication Primitives Towards Efficient Vision Transformer",
        year=2023,
        arxiv="2306.06446",
    )
    origin = "own"
    licence = Licence(code="Apache-2.0", weights="none published")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build PVT where `image_size` gives the size of its position tables, else PVT v2."""
        parts = dict(config)
        if parts.pop("image_size") is None:
            return PyramidV2(**parts)
        return PyramidV1(image_size=config["image_size"], **parts)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Map the authors' names, drop the projection that their code never uses, join queries with keys and values."""
        state: StateDict = {}
        for name, value in unwrapped(checkpoint).items():
            if name.endswith(".qk_quant.projection_matrix"):
                continue
            for pattern, ours in _RENAMED:
                name = re.sub(pattern, ours, name)
            state[name] = value
        for name in [name for name in state if re.search(r"\.attn\.q\.(weight|bias)$", name)]:
            stem, _, leaf = name.rpartition(".q.")
            if f"{stem}.kv.{leaf}" in state:
                joined = torch.cat((state.pop(name), state.pop(f"{stem}.kv.{leaf}")))
                state[f"{stem}.qkv.{leaf}"] = joined
        return state

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(folded(network), card, device)
