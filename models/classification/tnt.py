"""Transformer in Transformer (https://arxiv.org/abs/2103.00112).

Every patch of 16x16 pixels ("sentence") is cut into sixteen pieces of 4x4 ("words"). In each block an
inner transformer lets the words of one patch attend to each other, their projection is added to the
token of the patch, and an outer transformer lets the patches and the class token attend to each other. The
picture is cut into patches before the first convolution, which therefore sees zeros, not the neighbour,
beyond the border of a patch. The network is timm's (not its `legacy` form, which
convolves first); `translate` maps the authors' names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models.tnt import TNT
from torch import nn

from models import imagenet
from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Metric, Paper, Task

PUBLISHED = "https://github.com/huawei-noah/Efficient-AI-Backbones/releases/download/tnt"

# name: (letter, outer width, outer heads, inner width, multiply-adds, top-1, top-5, published file)
_SIZES: dict[str, tuple[str, int, int, int, float, float, float, str]] = {
    "small": ("S", 384, 6, 24, 5.2e9, 81.5, 95.7, "tnt_s_81.5.pth.tar"),
    "base": ("B", 640, 10, 40, 14.1e9, 82.9, 96.3, "tnt_b_82.9.pth.tar"),
}

# The authors' names of the parts of a block, and timm's.
_BLOCK = {
    "inner_norm1": "norm_in",
    "inner_attn": "attn_in",
    "inner_norm2": "norm_mlp_in",
    "inner_mlp": "mlp_in",
    "outer_norm1": "norm_out",
    "outer_attn": "attn_out",
    "outer_norm2": "norm_mlp",
    "outer_mlp": "mlp",
}
_WHOLE = {"inner_pos": "pixel_pos", "outer_pos": "patch_pos"}


def official_to_timm(name: str) -> str:
    """Return timm's name of an entry of the authors' checkpoints; timm's own names stay as they are."""
    name = re.sub(
        r"^(blocks\.\d+)\.((?:inner|outer)_\w+)\.",
        lambda found: f"{found[1]}.{_BLOCK[found[2]]}.",
        name,
    )
    name = re.sub(r"\bproj_norm([12])\.", r"norm\1_proj.", name)
    name = re.sub(r"^patch_embed\.", "pixel_embed.", name)
    return _WHOLE.get(name, name)


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "image_size": 64,
                "patch_size": 16,
                "inner_stride": 4,
                "dim": 96,
                "inner_dim": 12,
                "depth": 3,
                "heads": 3,
                "inner_heads": 2,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    for name, (letter, dim, heads, inner_dim, flops, top1, top5, file) in _SIZES.items():
        note = f"TNT-{letter}, 224x224"
        variants.append(
            Variant(
                name,
                config={
                    "image_size": 224,
                    "patch_size": 16,
                    "inner_stride": 4,
                    "dim": dim,
                    "inner_dim": inner_dim,
                    "depth": 12,
                    "heads": heads,
                    "inner_heads": 4,
                    "num_classes": 1000,
                },
                # Nine tenths of the shorter side; pixels from -1 to 1 in place of ImageNet's statistics.
                image=ImageInput(
                    height=224,
                    width=224,
                    resize="shorter-side",
                    resize_to=248,
                    interpolation="bicubic",
                    mean=(0.5, 0.5, 0.5),
                    std=(0.5, 0.5, 0.5),
                ),
                labels=imagenet.labels(),
                sources=(Source(f"{PUBLISHED}/{file}"),),
                metrics=(
                    *imagenet.top1(top1, note),
                    Metric(
                        name="top-5",
                        value=top5,
                        dataset="ImageNet-1k",
                        origin="published",
                        note=note,
                    ),
                ),
                flops=int(flops),
            )
        )
    return {variant.name: variant for variant in variants}


@register
class TNTArchitecture(Architecture):
    """Transformer in Transformer for the classification of images."""

    slug = "tnt"
    title = "Transformer in Transformer"
    task = Task.CLASSIFICATION
    paper = Paper(slug="tnt", title="Transformer in Transformer", year=2021, arxiv="2103.00112")
    origin = "library"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network; it takes pictures of `image_size` only."""
        return TNT(
            img_size=config["image_size"],
            patch_size=config["patch_size"],
            first_stride=config["inner_stride"],
            num_classes=config["num_classes"],
            embed_dim=config["dim"],
            inner_dim=config["inner_dim"],
            depth=config["depth"],
            num_heads_inner=config["inner_heads"],
            num_heads_outer=config["heads"],
            mlp_ratio=config.get("mlp_ratio", 4.0),
            qkv_bias=config.get("qkv_bias", False),
            norm_layer=partial(nn.LayerNorm, eps=config.get("norm_eps", 1e-5)),  # type: ignore[arg-type]
        )

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Map the authors' names to timm's; a checkpoint with timm's names comes through unchanged."""
        state = {official_to_timm(name): value for name, value in unwrapped(checkpoint).items()}
        # Zeros that the authors' network keeps and never reads.
        state.pop("outer_tokens", None)
        if state["pixel_pos"].dim() == 3:
            state["pixel_pos"] = _as_map(state["pixel_pos"])
        return state

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)


def _as_map(positions: torch.Tensor) -> torch.Tensor:
    """Turn the positions of the words, [1, side * side, C] in rows, into [1, C, side, side]."""
    side = round(positions.shape[1] ** 0.5)
    return positions.transpose(1, 2).reshape(1, -1, side, side).contiguous()
