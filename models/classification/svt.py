"""Scattering Vision Transformer: Spectral Mixing Matters (https://arxiv.org/abs/2311.01310).

A transformer of four stages. The first one, where the map is largest, has no attention: one level of the
dual-tree complex wavelet transform takes the map apart, the low band is weighted place by place, the
six oriented high bands go through a small complex network over their channels, and the inverse transform
puts the map together again. The later stages attend over all their positions. At the end a class token, the
mean of the last map, attends to it once; the logits are the token's and, by half, the
highest that any position gives.

The weights of the low band belong to one size of picture, so the network takes that size only.
The paper speaks of spectral mixing more generally; this is the network as released
(https://github.com/badripatro/svt), written here under its names. The authors publish no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from models import imagenet
from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.classification._svt_wavelet import DualTree, InverseDualTree
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Metric, Paper, Task

# The channels of the high bands are mixed in this many groups.
GROUPS = 4

_LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class Scattering(nn.Module):
    """Mixes tokens [B, side * side, C] in the bands of a wavelet transform, always in float32."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self._side = side
        width = dim // GROUPS
        self.complex_weight_ll = nn.Parameter(torch.randn(dim, side, side) * 0.02)
        # Real and imaginary parts in the first axis; input, then output channels in the last two.
        self.complex_weight_lh_1 = nn.Parameter(torch.randn(2, GROUPS, width, width) * 0.02)
        self.complex_weight_lh_2 = nn.Parameter(torch.randn(2, GROUPS, width, width) * 0.02)
        self.complex_weight_lh_b1 = nn.Parameter(torch.randn(2, GROUPS, width) * 0.02)
        self.complex_weight_lh_b2 = nn.Parameter(torch.randn(2, GROUPS, width) * 0.02)
        self.xfm = DualTree()
        self.ifm = InverseDualTree()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            x = tokens.float().transpose(1, 2).unflatten(2, (self._side, self._side))
            low, bands = self.xfm(x)
            x = self.ifm(low * self.complex_weight_ll, self._mix(bands))
        return x.flatten(2).transpose(1, 2).to(tokens.dtype)

    def _mix(self, bands: torch.Tensor) -> torch.Tensor:
        """Apply two complex linear layers over the channels of [B, C, 6, H, W, 2]."""
        shape = bands.shape
        x = bands.unflatten(1, (GROUPS, -1)).flatten(3, 5)  # B, groups, C / groups, 6 H W, 2
        re, im = x.unbind(-1)
        re, im = _linear(re, im, self.complex_weight_lh_1, self.complex_weight_lh_b1)
        re, im = _linear(re.relu(), im.relu(), self.complex_weight_lh_2, self.complex_weight_lh_b2)
        return torch.stack((re, im), dim=-1).reshape(shape)


def _linear(
    re: torch.Tensor, im: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    weight_re, weight_im = weight.transpose(2, 3)  # groups, out, in
    bias_re, bias_im = bias[..., None]
    return (
        weight_re @ re - weight_im @ im + bias_re,
        weight_im @ re + weight_re @ im + bias_im,
    )


class Attention(nn.Module):
    """Softmax attention of `queries` [B, N, C] over `tokens` [B, M, C]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            x.unflatten(2, (self._heads, -1)).transpose(1, 2)  # B, heads, N, C / heads
            for x in (self.q(queries), *self.kv(tokens).chunk(2, dim=-1))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class SelfAttention(Attention):
    """Softmax attention of tokens [B, N, C] over themselves."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens, tokens)


class DepthwiseConv(nn.Module):
    """3x3 depthwise convolution of tokens [B, N, C] that form a map of N / `width` rows."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, tokens: torch.Tensor, width: int) -> torch.Tensor:
        x = self.dwconv(tokens.transpose(1, 2).unflatten(2, (-1, width)))
        return x.flatten(2).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers and GELU, with a depthwise convolution between them where `local`."""

    def __init__(self, dim: int, ratio: int, *, local: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.dwconv = DepthwiseConv(ratio * dim) if local else None
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, tokens: torch.Tensor, width: int = 1) -> torch.Tensor:
        x = self.fc1(tokens)
        if self.dwconv is not None:
            x = self.dwconv(x, width)
        return self.fc2(functional.gelu(x))


class Block(nn.Module):
    """A mixer of tokens [B, N, C], then a feed-forward network that knows the map's `width`."""

    def __init__(self, dim: int, ratio: int, mixer: nn.Module) -> None:
        super().__init__()
        self.norm1 = _LayerNorm(dim)
        self.attn = mixer
        self.norm2 = _LayerNorm(dim)
        self.mlp = FeedForward(dim, ratio, local=True)

    def forward(self, tokens: torch.Tensor, width: int) -> torch.Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens), width)


class ClassBlock(nn.Module):
    """Attention of the first token over all; the others stay: [B, N, C] to the same."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = _LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = _LayerNorm(dim)
        self.mlp = FeedForward(dim, ratio, local=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(tokens)
        first = tokens[:, :1] + self.attn(normed[:, :1], normed)
        first = first + self.mlp(self.norm2(first))
        return torch.cat((first, tokens[:, 1:]), dim=1)


class Embedding(nn.Module):
    """Halves a map [B, C, H, W] (after three convolutions where `stem` gives their width): tokens [B, HW/4, dim]."""

    def __init__(self, channels: int, dim: int, stem: int | None = None) -> None:
        super().__init__()
        self.conv = _stem(channels, stem) if stem else nn.Identity()
        self.proj = nn.Conv2d(stem or channels, dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return the tokens and the width of their map."""
        x = self.proj(self.conv(x))
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[3]


def _stem(channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, size, stride in ((channels, 7, 2), (width, 3, 1), (width, 3, 1)):
        layers += [
            nn.Conv2d(inputs, width, size, stride=stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class SVT(nn.Module):
    """Scattering vision transformer: images [B, 3, S, S] of `image_size` to logits [B, classes]."""

    def __init__(
        self,
        image_size: int,
        stem: int,
        dims: Sequence[int],
        heads: Sequence[int],
        ratios: Sequence[int],
        depths: Sequence[int],
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self._stages = range(1, len(dims) + 1)
        self.patch_embed1 = Embedding(3, dims[0], stem)
        for stage, (narrow, wide) in enumerate(pairwise(dims), start=2):
            setattr(self, f"patch_embed{stage}", Embedding(narrow, wide))
        for stage, dim, head, ratio, depth in zip(
            self._stages, dims, heads, ratios, depths, strict=True
        ):
            mixer = (
                partial(Scattering, dim, image_size // 4)
                if stage == 1
                else partial(SelfAttention, dim, head)
            )
            blocks = nn.ModuleList(Block(dim, ratio, mixer()) for _ in range(depth))
            setattr(self, f"block{stage}", blocks)
            setattr(self, f"norm{stage}", _LayerNorm(dim))
        self.post_network = nn.ModuleList([ClassBlock(dims[-1], heads[-1], ratios[-1])])
        self.head = nn.Linear(dims[-1], num_classes)
        self.aux_head = nn.Linear(dims[-1], num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image
        for stage in self._stages:
            tokens, width = getattr(self, f"patch_embed{stage}")(x)
            for block in getattr(self, f"block{stage}"):
                tokens = block(tokens, width)
            if stage < self._stages[-1]:
                tokens = getattr(self, f"norm{stage}")(tokens)
                x = tokens.transpose(1, 2).unflatten(2, (-1, width))
        tokens = torch.cat((tokens.mean(1, keepdim=True), tokens), dim=1)
        for block in self.post_network:
            tokens = block(tokens)
        tokens = getattr(self, f"norm{self._stages[-1]}")(tokens)
        return self.head(tokens[:, 0]) + 0.5 * self.aux_head(tokens[:, 1:]).amax(1)


# name: (long name, stem, widths, depths, multiply-adds, top-1 and top-5 of ImageNet-1k)
_SIZES: dict[str, tuple[str, int, tuple[int, ...], tuple[int, ...], float, float, float]] = {
    "small": ("SVT-H-S", 32, (64, 128, 320, 448), (3, 4, 6, 3), 3.9e9, 84.2, 96.9),
    "base": ("SVT-H-B", 64, (64, 128, 320, 512), (3, 4, 12, 3), 6.3e9, 85.2, 97.3),
    "large": ("SVT-H-L", 64, (96, 192, 384, 512), (3, 6, 18, 3), 12.7e9, 85.7, 97.5),
}


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "image_size": 64,
                "stem": 16,
                "dims": (16, 32, 64, 96),
                "heads": (1, 2, 4, 6),
                "ratios": (8, 8, 4, 4),
                "depths": (1, 1, 2, 1),
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    for name, (title, stem, dims, depths, flops, top1, top5) in _SIZES.items():
        note = f"{title}, 224x224"
        variants.append(
            Variant(
                name,
                config={
                    "image_size": 224,
                    "stem": stem,
                    "dims": dims,
                    "heads": tuple(dim // 32 for dim in dims),
                    "ratios": (8, 8, 4, 4),
                    "depths": depths,
                    "num_classes": 1000,
                },
                image=imagenet.evaluation(224, crop=0.96),
                labels=imagenet.labels(),
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
                notes=("The authors publish the accuracy of this variant, but no weights.",),
            )
        )
    return {variant.name: variant for variant in variants}


@register
class SVTArchitecture(Architecture):
    """Scattering vision transformer for the classification of images."""

    slug = "svt"
    title = "SVT"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="svt",
        title="Scattering Vision Transformer: Spectral Mixing Matters",
        year=2023,
        arxiv="2311.01310",
    )
    origin = "own"
    licence = Licence(code="none stated", weights="none published", commercial=False)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network for square pictures of `image_size`, a multiple of 32."""
        return SVT(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Open the wrapper and drop the filters of the transform's deeper levels, which it never reaches."""
        unused = tuple(
            f".{part}" for part in ("h0a", "h0b", "h1a", "h1b", "g0a", "g0b", "g1a", "g1b")
        )
        return {n: v for n, v in unwrapped(checkpoint).items() if not n.endswith(unused)}

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
