"""TiC: Exploring Vision Transformer in Convolution (https://arxiv.org/abs/2310.04134), after the paper.

A convolution whose weights are attention: at every position the query there is compared with the keys of the
window around it, and the softmax of the products weighs the window's values (MSA-Conv). As there
are no embeddings of positions and no windows of a fixed grid, pictures may have any size.

Published is this layer alone (https://github.com/zs670980918/MSA-Conv): `MSAConv2d` computes what it does,
under its names. The network around it is this project's reading of the paper, whose sizes, weights and
accuracy it does not claim. It has four stages of residual blocks, and of the paper's two means to widen
what a window sees

- the shift in several directions: in every second block the channels are cut in four, and the windows of
  each quarter lie one window further up, down, left or right of their query, the map being cyclic;
- the exchange of pooled features: at the end of each stage every position receives a
  projection of the whole map's mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import nn
from torch.nn import functional

from models import imagenet
from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

Pair = tuple[int, int]

# Where the windows of the four quarters of the channels lie, in windows down and right of their query.
DIRECTIONS: tuple[Pair, ...] = ((-1, 0), (1, 0), (0, -1), (0, 1))


def pair(value: int | Sequence[int]) -> Pair:
    """Return a size per axis (height, width), given one for both or one for each."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def windows(x: torch.Tensor, kernel: Pair, dilation: Pair = (1, 1)) -> torch.Tensor:
    """Return what lies around every position of [B, C, H, W]: [B, C, kh * kw, H, W], zero outside the map.

    Row after row of the window; its sides are odd.
    """
    margin = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    columns = functional.unfold(x, kernel, dilation=dilation, padding=margin)
    return columns.unflatten(2, x.shape[2:]).unflatten(1, (x.shape[1], -1))


class WindowScores(nn.Module):
    """Products [B, kh * kw, H, W] of each query with the keys around it; both are [B, C, H, W]."""

    def __init__(self, kernel: Pair, dilation: Pair = (1, 1)) -> None:
        super().__init__()
        self._kernel, self._dilation = kernel, dilation

    def forward(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return (queries[:, :, None] * windows(keys, self._kernel, self._dilation)).sum(1)


class WindowSum(nn.Module):
    """Sums [B, C, H, W] of the values around each position by their weights [B, kh * kw, H, W]."""

    def __init__(self, kernel: Pair, dilation: Pair = (1, 1)) -> None:
        super().__init__()
        self._kernel, self._dilation = kernel, dilation

    def forward(self, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return (weights[:, None] * windows(values, self._kernel, self._dilation)).sum(2)


class MSAConv2d(nn.Module):
    """The published layer: window attention of one head, added to its input, then a convolution and ReLU.

    Maps [B, C, H, W] to [B, `channels_out`, H', W']. Positions outside the map keep their place in the
    softmax, with a product of zero, so that the borders are damped. Only the last convolution strides.
    """

    def __init__(
        self,
        channels: int,
        channels_out: int,
        kernel: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self._scale = channels**-0.5
        self.qkv_conv = nn.Conv2d(channels, 3 * channels, 1)
        self.scores = WindowScores(pair(kernel), pair(dilation))
        self.softmax = nn.Softmax(dim=1)
        self.sum = WindowSum(pair(kernel), pair(dilation))
        self.mlp = nn.Conv2d(
            channels, channels_out, pair(kernel), pair(stride), pair(padding), bias=bias
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, keys, values = self.qkv_conv(x).float().chunk(3, dim=1)
        weights = self.softmax(self.scores(queries, keys) * self._scale)
        return self.mlp(x + self.sum(weights, values)).relu()


class WindowAttention(nn.Module):
    """Attention of four heads over the window around each position: [B, C, H, W] to the same.

    With `shifted`, each head's window lies to another side, `DIRECTIONS`, on a cyclic map.
    """

    def __init__(self, dim: int, kernel: int, *, shifted: bool) -> None:
        super().__init__()
        self._shifts = tuple(
            (kernel * down * shifted, kernel * right * shifted) for down, right in DIRECTIONS
        )
        self._scale = (dim // len(DIRECTIONS)) ** -0.5
        self.qkv_conv = nn.Conv2d(dim, 3 * dim, 1)
        self.scores = WindowScores(pair(kernel))
        self.sum = WindowSum(pair(kernel))
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, keys, values = self.qkv_conv(x).float().chunk(3, dim=1)
        mixed = self._attend(queries, self._roll(keys), self._roll(values))
        return self.proj(mixed.to(x.dtype))

    def _roll(self, x: torch.Tensor) -> torch.Tensor:
        # What lies down and right comes here by a roll up and left.
        quarters = zip(x.chunk(len(DIRECTIONS), dim=1), self._shifts, strict=True)
        return torch.cat([q.roll((-down, -right), (2, 3)) for q, (down, right) in quarters], dim=1)

    def _attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        heads = (len(DIRECTIONS), -1)
        queries, keys, values = (  # B * heads, C / heads, H, W
            x.unflatten(1, heads).flatten(0, 1) for x in (queries, keys, values)
        )
        weights = (self.scores(queries, keys) * self._scale).softmax(1)
        return self.sum(weights, values).unflatten(0, (-1, len(DIRECTIONS))).flatten(1, 2)


class Block(nn.Module):
    """Window attention, then two 1x1 convolutions with GELU between them, each added to its input."""

    def __init__(self, dim: int, kernel: int, ratio: int, *, shifted: bool) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim)
        self.attn = WindowAttention(dim, kernel, shifted=shifted)
        self.norm2 = LayerNorm2d(dim)
        self.fc1 = nn.Conv2d(dim, ratio * dim, 1)
        self.fc2 = nn.Conv2d(ratio * dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class InterPooling(nn.Module):
    """Adds a projection of the map's mean to every position of [B, C, H, W]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.proj(self.norm(x).mean((2, 3), keepdim=True))


class TiC(nn.Module):
    """Stages of window attention: images [B, 3, H, W], of 32 pixels a side at least, to logits [B, classes]."""

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        kernel: int,
        ratio: int = 4,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, stride=4), LayerNorm2d(dims[0]))
        self.downsample = nn.ModuleList([stem])
        for narrow, wide in pairwise(dims):
            self.downsample.append(
                nn.Sequential(LayerNorm2d(narrow), nn.Conv2d(narrow, wide, 2, stride=2))
            )
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(Block(dim, kernel, ratio, shifted=i % 2 == 1) for i in range(depth)),
                InterPooling(dim),
            )
            for dim, depth in zip(dims, depths, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image
        for downsample, stage in zip(self.downsample, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean((2, 3))))


@register
class TiCArchitecture(Architecture):
    """A network in the manner of TiC for the classification of images."""

    slug = "tic"
    title = "TiC (after the paper)"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="tic",
        title="TiC: Exploring Vision Transformer in Convolution",
        year=2023,
        arxiv="2310.04134",
    )
    origin = "after the paper"
    licence = Licence(code="Apache-2.0", weights="none published")
    variants: Mapping[str, Variant] = {
        "demo": Variant(
            "demo",
            config={
                "dims": (24, 48, 80, 112),
                "depths": (2, 2, 2, 1),
                "kernel": 3,
                "ratio": 4,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
            notes=(
                "The paper's network is not public: this one has its layer, and sizes of our own.",
            ),
        ),
        "small": Variant(
            "small",
            config={
                "dims": (64, 128, 256, 512),
                "depths": (2, 2, 6, 2),
                "kernel": 3,
                "ratio": 4,
                "num_classes": 1000,
            },
            image=imagenet.evaluation(224),
            labels=imagenet.labels(),
            notes=(
                "The paper's network is not public: this one has its layer, and sizes of our own. "
                "It reaches no published accuracy before it is trained.",
            ),
        ),
    }

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network; widths are multiples of the four directions, `kernel` is odd."""
        return TiC(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Open the wrapper. There are no published checkpoints; one trained here keeps its names."""
        return unwrapped(checkpoint)

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
