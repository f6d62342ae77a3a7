"""DuoFormer: Hierarchical Representations by Local and Global Attention (https://arxiv.org/abs/2407.13920).

A ResNet's maps of several scales, read by a transformer in two parts; made for tiles of histology slides. The picture is
a grid of patches of 32x32 pixels. For each patch the tokens are what it covers in every map: 1 of the
deepest, then 4, 16, 64, in front of them one token of the patch's own. First the tokens
of one patch attend to each other (scale attention, in blocks as ViT's). Then only the patches' own tokens remain,
and with a class token they attend across the picture (patch attention): layers without shortcut,
normalisation or MLP, so that with depth all tokens become alike. The own token is either one learned vector,
or drawn from all four maps of the ResNet by convolutions.

Names are those of the author's code (https://github.com/xiaoyatang/duoformer_TCGA, class
`MyModel_no_extra_params`), which states no licence; its checkpoints have no stable addresses.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from models import imagenet
from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.demo import tissue
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

PATCH = 32
_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
}
_norm = partial(nn.LayerNorm, eps=1e-6)
_STD = 0.036
# Layers of a ResNet before its stages.
_STEM = 4


def tokens_of_patches(features: torch.Tensor, side: int) -> torch.Tensor:
    """Return what each patch covers of a map [B, C, side * g, side * g]: [B, g * g, side * side, C].

    Patches row by row; inside a patch the positions go column by column where `side` is 2, else row by row.
    """
    cells = features.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # B, C, r, y, c, x
    order = (0, 2, 4, 5, 3, 1) if side == 2 else (0, 2, 4, 3, 5, 1)
    return cells.permute(order).flatten(3, 4).flatten(1, 2)


class ResNet(nn.Sequential):
    """The convolutional part of torchvision's ResNet, its children by number: 4 to 7 are the stages."""

    def __init__(self, block: str, depths: Sequence[int], width: int) -> None:
        kind = _BLOCKS[block]
        stages = []
        inputs = width
        for number, depth in enumerate(depths):
            planes = width << number
            stages.append(_stage(kind, inputs, planes, depth, stride=2 if number else 1))
            inputs = planes * kind.expansion
        super().__init__(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
            *stages,
        )
        self.dims = tuple((width << number) * kind.expansion for number in range(4))

    def maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the picture's sides."""
        x, maps = image, []
        for number, layer in enumerate(self):
            x = layer(x)
            if number >= _STEM:
                maps.append(x)
        return maps


def _stage(
    kind: type[BasicBlock] | type[Bottleneck], inputs: int, planes: int, depth: int, stride: int
) -> nn.Sequential:
    outputs = planes * kind.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
        )
    first = kind(inputs, planes, stride, shortcut)
    return nn.Sequential(first, *(kind(outputs, planes) for _ in range(depth - 1)))


def _shrinking(dim: int, convolutions: int) -> nn.Sequential:
    """Return strided convolutions, then max-pooling; each halves the sides of a map."""
    layers: list[tuple[str, nn.Module]] = [
        (f"conv{i + 1}", nn.Conv2d(dim, dim, 3, stride=2, padding=1)) for i in range(convolutions)
    ]
    return nn.Sequential(OrderedDict([*layers, ("pool", nn.MaxPool2d(2))]))


def _fusion(inputs: int, dim: int, depth: int = 4) -> nn.Sequential:
    """Return 3x3 convolutions with batch norm and ReLU: [B, inputs, g, g] to [B, dim, g * g]."""
    layers = [
        nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(dim if i else inputs, dim, 3, padding=1),
                norm=nn.BatchNorm2d(dim),
                activation=nn.ReLU(),
            )
        )
        for i in range(depth)
    ]
    return nn.Sequential(OrderedDict(nConvs=nn.Sequential(*layers), tokens=nn.Flatten(2)))


class Projection(nn.Module):
    """1x1 convolutions of the deepest `scales` maps to one width."""

    def __init__(self, dims: Sequence[int], dim: int, scales: int) -> None:
        super().__init__()
        for level in range(4 - scales, 4):
            setattr(self, f"proj_heads{level}", nn.Conv2d(dims[level], dim, 1))
        self._scales = scales

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map four maps to the tokens of the patches, deepest map first: [B, patches, tokens, dim]."""
        levels = range(3, 3 - self._scales, -1)
        return torch.cat(
            [
                tokens_of_patches(self.get_submodule(f"proj_heads{level}")(maps[level]), 8 >> level)
                for level in levels
            ],
            dim=2,
        )


class DuoTransformer(nn.Module):
    """Scale attention, patch attention and head: [B, patches, tokens, dim] to logits [B, classes]."""

    def __init__(
        self,
        patches: int,
        tokens: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        classes: int,
    ) -> None:
        super().__init__()
        self.pos_embed_for_scale = nn.Parameter(torch.randn(1, 1, tokens, dim) * _STD)
        self.scaleBlocks = nn.Sequential(
            *(Block(dim, heads, mlp_ratio, qkv_bias=True, norm_layer=_norm) for _ in range(depth))
        )
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * _STD)
        self.pos_embed = nn.Parameter(torch.randn(1, patches + 1, dim) * _STD)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(OrderedDict(attn=Attention(dim, heads, qkv_bias=True)))
                for _ in range(depth)
            )
        )
        # Part of every checkpoint; the author's code computes it and then leaves the result unused.
        self.fc_norm = _norm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = x.shape[1]
        x = (x + self.pos_embed_for_scale).flatten(0, 1)  # B * patches, tokens, dim
        own = self.scaleBlocks(x)[:, 0].unflatten(0, (-1, patches))  # B, patches, dim
        x = torch.cat((self.cls_token.expand(own.shape[0], -1, -1), own), dim=1) + self.pos_embed
        return self.head(self.blocks(x)[:, 0])


class DuoFormer(nn.Module):
    """The network, for square pictures of `image_size`: [B, 3, S, S] to logits [B, num_classes].

    `block`, `depths` and `width` are those of the ResNet; `scales`, 2 to 4, how many of its maps give tokens.
    `scale_token`: the patches' own token, one learned vector (`random`) or from the maps (`channel`).
    """

    def __init__(
        self,
        image_size: int,
        block: Literal["basic", "bottleneck"],
        depths: Sequence[int],
        width: int,
        scales: int,
        scale_token: Literal["random", "channel"],
        dim: int,
        depth: int,
        heads: int,
        num_classes: int,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if image_size % PATCH:
            raise ValueError(f"image_size must be a multiple of {PATCH}")
        self.resnet_projector = ResNet(block, depths, width)
        dims = self.resnet_projector.dims
        self.channel_token: nn.Parameter | None = None
        if scale_token == "random":
            self.channel_token = nn.Parameter(torch.randn(1, 1, 1, dim) * _STD)
        else:
            self.chann_proj1 = _shrinking(dims[0], 2)
            self.chann_proj2 = _shrinking(dims[1], 1)
            self.chann_proj3 = _shrinking(dims[2], 0)
            self.chann_proj_all = _fusion(sum(dims), dim)
        self.projection = Projection(dims, dim, scales)
        tokens = 1 + sum(4**level for level in range(scales))
        self.vision_transformer = DuoTransformer(
            (image_size // PATCH) ** 2, tokens, dim, depth, heads, mlp_ratio, num_classes
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = self.resnet_projector.maps(image)
        tokens = self.projection(maps)  # B, patches, 1 + 4 + ..., dim
        return self.vision_transformer(torch.cat((self._own(maps, tokens), tokens), dim=2))

    def _own(self, maps: Sequence[torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        if self.channel_token is not None:
            return self.channel_token.expand(*tokens.shape[:2], -1, -1)
        shrunk = (self.chann_proj1(maps[0]), self.chann_proj2(maps[1]), self.chann_proj3(maps[2]))
        fused = self.chann_proj_all(torch.cat((*shrunk, maps[3]), dim=1))  # B, dim, patches
        return fused.transpose(1, 2).unsqueeze(2)


_RESNETS = {
    "r50": {"block": "bottleneck", "depths": (3, 4, 6, 3), "width": 64},
    "r18": {"block": "basic", "depths": (2, 2, 2, 2), "width": 64},
}
# Where a ResNet's own names for its layers stand in the sequence.
_PLACES = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
_NOTES = (
    "The author names neither the classes nor the pre-processing: labels come with the weights, "
    "and ImageNet's statistics are assumed, as for the ResNet's own weights.",
    "The paper reports accuracy of up to 3.83 points (supervised) and 9.88 points (self-supervised ResNet) above "
    "its baselines on tiles of renal cancer; figures taken at second hand.",
)


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "image_size": 64,
                "block": "basic",
                "depths": (1, 1, 1, 1),
                "width": 12,
                "scales": 3,
                "scale_token": "channel",
                "dim": 48,
                "depth": 2,
                "heads": 3,
                "num_classes": len(tissue.KINDS),
            },
            image=imagenet.squashed(64),
            labels=tissue.KINDS,
            notes=("It has seen drawings only: its answers about a patient mean nothing.",),
            demo=True,
        )
    ]
    for resnet, scales, scale_token in (
        ("r50", 3, "channel"),
        ("r50", 4, "channel"),
        ("r50", 3, "random"),
        ("r50", 4, "random"),
        ("r18", 4, "random"),
    ):
        variants.append(
            Variant(
                f"{resnet}-{scales}scales-{scale_token}",
                config=_RESNETS[resnet]
                | {
                    "image_size": 224,
                    "scales": scales,
                    "scale_token": scale_token,
                    "dim": 768,
                    "depth": 12,
                    "heads": 12,
                    "num_classes": 2,
                },
                image=imagenet.squashed(224),
                notes=_NOTES,
            )
        )
    return {variant.name: variant for variant in variants}


@register
class DuoFormerArchitecture(Architecture):
    """DuoFormer for the classification of tiles of histology slides."""

    slug = "duoformer"
    title = "DuoFormer"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="duoformer",
        title="DuoFormer: Leveraging Hierarchical Representations by Local and Global Attention",
        year=2024,
        arxiv="2407.13920",
    )
    origin = "own"
    licence = Licence(code="none stated", weights="none stated", commercial=False)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network from `DuoFormer`'s arguments."""
        return DuoFormer(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Give the layers of a ResNet with names of its own (the self-supervised one) their numbers."""
        return {
            re.sub(
                r"^resnet_projector\.([a-z]+\d)\.",
                lambda found: f"resnet_projector.{_PLACES.get(found[1], found[1])}.",
                name,
            ): value
            for name, value in unwrapped(checkpoint).items()
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
