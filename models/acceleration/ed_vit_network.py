"""ED-ViT: Splitting Vision Transformer for Distributed Inference on Edge Devices (2024).

https://arxiv.org/abs/2410.11650. Written after the paper, whose authors published no code; what the
paper's summaries leave open follows DeViT (falcon-xu/DeViT), which has the same shape.

A classifier becomes several small vision transformers, each made for a part of the classes and pruned
for it, that can run on different machines: each sends one feature vector, and a small network
classifies all of them together. The sub-models are timm's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

Network = TypeVar("Network", bound=VisionTransformer)


@dataclass(frozen=True)
class SplitConfig:
    """Sizes of the sub-models, which are alike, and of the fusion; the defaults are DeViT's.

    `hidden`: width of the fusion's first layer, None for a single layer. `distilled`: whether the
    sub-models have a distillation token, which the fusion classifies too, averaging the logits.
    """

    parts: int = 2
    num_classes: int = 10
    hidden: int | None = 768
    distilled: bool = False
    image_size: int = 224
    patch_size: int = 16
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0


class SubModels(nn.Module):
    """The sub-models `backbones`; each is deployable alone, by `features`."""

    def __init__(self, config: SplitConfig) -> None:
        super().__init__()
        build = VisionTransformerDistilled if config.distilled else VisionTransformer
        self.backbones = nn.ModuleList(
            build(
                img_size=config.image_size,
                patch_size=config.patch_size,
                num_classes=0,
                embed_dim=config.embed_dim,
                depth=config.depth,
                num_heads=config.num_heads,
                mlp_ratio=config.mlp_ratio,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )
            for _ in range(config.parts)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map [B, 3, H, W] to the features of each sub-model."""
        return [features(backbone, image) for backbone in self.backbones]


def features(backbone: VisionTransformer, image: Tensor) -> Tensor:
    """Return what a sub-model sends: its class token and distillation token, if any, after the last norm.

    [B, 3, H, W] to [B, 1 or 2, embed_dim].
    """
    return backbone.forward_features(image)[:, : backbone.num_prefix_tokens]


class Fusion(nn.Module):
    """Classifies the concatenated features of all sub-models, with no activation in between."""

    def __init__(self, config: SplitConfig) -> None:
        super().__init__()
        joined = config.parts * config.embed_dim
        self.kinds = ("cls", "dist") if config.distilled else ("cls",)
        for kind in self.kinds:
            mlp = nn.Identity() if config.hidden is None else nn.Linear(joined, config.hidden)
            self.add_module(f"{kind}_mlp", mlp)
            classifier = nn.Linear(config.hidden or joined, config.num_classes)
            self.add_module(f"{kind}_classifier", classifier)

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """Map the features of all sub-models, in their order, to logits [B, num_classes]."""
        joined = torch.cat(tuple(parts), dim=2)  # B, kinds, parts * embed_dim
        logits = [
            getattr(self, f"{kind}_classifier")(getattr(self, f"{kind}_mlp")(joined[:, number]))
            for number, kind in enumerate(self.kinds)
        ]
        return torch.stack(logits).mean(0)


class SplitViT(nn.Module):
    """All sub-models and their fusion in one process. Maps [B, 3, H, W] to logits [B, num_classes]."""

    def __init__(self, config: SplitConfig) -> None:
        super().__init__()
        self.sub_models = SubModels(config)
        self.fusion = Fusion(config)

    def forward(self, image: Tensor) -> Tensor:
        return self.fusion(self.sub_models(image))


@torch.no_grad()
def reduced(network: Network, heads: Sequence[int], units: Sequence[int]) -> Network:
    """Return a copy with only the given attention heads and hidden units of the MLP in every block.

    What is left out is gone from the weights, which gives the same features as multiplying it with
    zero and takes less time and space. Raises ValueError where a block has no such head or unit.
    """
    network = copy.deepcopy(network)
    for block in network.blocks:
        block.attn = _with_heads(block.attn, heads)
        mlp = block.mlp
        _check("unit", units, mlp.fc1.out_features)
        kept = torch.tensor(units)
        mlp.fc1, mlp.fc2 = _rows(mlp.fc1, kept), _columns(mlp.fc2, kept)
    return network


def _with_heads(attention: Attention, heads: Sequence[int]) -> Attention:
    _check("head", heads, attention.num_heads)
    width, total = attention.head_dim, attention.attn_dim
    channels = (torch.tensor(heads)[:, None] * width + torch.arange(width)).flatten()
    smaller = copy.deepcopy(attention)
    smaller.num_heads, smaller.attn_dim = len(heads), len(channels)
    smaller.qkv = _rows(attention.qkv, torch.cat([part * total + channels for part in range(3)]))
    smaller.proj = _columns(attention.proj, channels)
    return smaller


def _check(name: str, kept: Sequence[int], count: int) -> None:
    if not kept or len(set(kept)) < len(kept) or not all(0 <= index < count for index in kept):
        raise ValueError(f"{name}s to keep must be different numbers below {count}")


def _rows(linear: nn.Linear, kept: Tensor) -> nn.Linear:
    bias = None if linear.bias is None else linear.bias[kept]
    return _linear(linear.weight[kept], bias)


def _columns(linear: nn.Linear, kept: Tensor) -> nn.Linear:
    return _linear(linear.weight[:, kept], linear.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear
