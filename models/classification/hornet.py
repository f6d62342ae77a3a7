"""HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions (https://arxiv.org/abs/2207.14284).

A network staged like ConvNeXt whose blocks mix positions by a recursive gated convolution: the map is
projected to pieces of growing width, all but the narrowest see their surroundings through a depthwise
mixer, and the pieces are multiplied with each other one after the other, from narrow to wide. Each product
raises the order of the interaction between positions; the stages go up to orders 2, 3, 4 and 5.
The mixer is a 7x7 depthwise convolution or, in the last two stages of the "GF" variants, half 3x3 convolution
and half a filter learned for every frequency of the whole map.

The network is written here under the authors' names (https://github.com/raoyongming/HorNet, MIT).
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
from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

# Height and width of a stage's learned spectrum, or None where the stage mixes by a 7x7 convolution.
Spectrum = tuple[int, int] | None

EPS = 1e-6
DEPTHS = (2, 3, 18, 2)
ORDERS = (2, 3, 4, 5)
SPECTRA: dict[str, tuple[Spectrum, ...]] = {
    "7x7": (None, None, None, None),
    "gf": (None, None, (14, 8), (7, 4)),
    "gf-384": (None, None, (24, 13), (12, 7)),
}

# Where the authors share their files of ImageNet-1k: (size, mixer): the share's name.
_SHARE = "https://cloud.tsinghua.edu.cn/f"
_SHARED = {
    ("tiny", "7x7"): "bac9690c72944d19aca1",
    ("tiny", "gf"): "460e759c82324ea6bfa3",
    ("small", "7x7"): "8ef64277da0e469ea857",
    ("small", "gf"): "959603ca287d4c09ad49",
    ("base", "7x7"): "13a748487711492e9704",
    ("base", "gf"): "c212d1d8a3914b47a5c1",
}

# name: (long name, width of the first stage, {mixer: (multiply-adds, top-1 of ImageNet-1k)})
_SIZES: dict[str, tuple[str, int, dict[str, tuple[float, float | None]]]] = {
    "tiny": ("HorNet-T", 64, {"7x7": (4.0e9, 82.8), "gf": (3.9e9, 83.0)}),
    "small": ("HorNet-S", 96, {"7x7": (8.8e9, 83.8), "gf": (8.7e9, 84.0)}),
    "base": ("HorNet-B", 128, {"7x7": (15.6e9, 84.2), "gf": (15.5e9, 84.3)}),
    "large": (
        "HorNet-L",
        192,
        {"7x7": (34.8e9, None), "gf": (34.7e9, None), "gf-384": (101.8e9, None)},
    ),
}


class GlobalLocalFilter(nn.Module):
    """Mixes half the channels by a 3x3 convolution, half by a learned gain per frequency: [B, C, H, W] to the same."""

    def __init__(self, dim: int, spectrum: tuple[int, int]) -> None:
        super().__init__()
        self.pre_norm = LayerNorm2d(dim, eps=EPS)
        self.dw = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2, bias=False)
        # Real and imaginary parts in the last axis.
        self.complex_weight = nn.Parameter(torch.randn(dim // 2, *spectrum, 2) * 0.02)
        self.post_norm = LayerNorm2d(dim, eps=EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near, far = self.pre_norm(x).chunk(2, dim=1)
        near = self.dw(near)
        far = self._filter(far.float()).to(near.dtype)
        # The halves alternate channel by channel, so that each piece cut from the result holds both.
        return self.post_norm(torch.stack((near, far), dim=2).flatten(1, 2))

    def _filter(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        spectrum = torch.fft.rfft2(x, norm="ortho")  # B, C/2, H, W/2 + 1
        gain = self.complex_weight.float()
        if gain.shape[1:3] != spectrum.shape[2:]:
            gain = functional.interpolate(
                gain.permute(3, 0, 1, 2),  # 2, C/2, h, w
                size=spectrum.shape[2:],
                mode="bilinear",
                align_corners=True,
            ).permute(1, 2, 3, 0)
        spectrum = spectrum * torch.view_as_complex(gain.contiguous())
        return torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")


class RecursiveGatedConv(nn.Module):
    """gnConv of the order `order` on `dim` channels: [B, C, H, W] to the same.

    The widths double from piece to piece and end at `dim`; `scale` keeps the products small.
    """

    def __init__(self, dim: int, order: int, spectrum: Spectrum, scale: float) -> None:
        super().__init__()
        self._widths = [dim // 2**i for i in reversed(range(order))]
        self._scale = scale
        mixed = sum(self._widths)  # = 2 dim - widths[0]
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1)
        self.dwconv: nn.Module = (
            nn.Conv2d(mixed, mixed, 7, padding=3, groups=mixed)
            if spectrum is None
            else GlobalLocalFilter(mixed, spectrum)
        )
        self.pws = nn.ModuleList(
            nn.Conv2d(narrow, wide, 1) for narrow, wide in pairwise(self._widths)
        )
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gates = self.proj_in(x).tensor_split((self._widths[0],), dim=1)
        # Scaled once, before the pieces are cut: the result holds the factor to the power of the order.
        first, *further = (self.dwconv(gates) * self._scale).split(self._widths, dim=1)
        x = x * first
        for widen, gate in zip(self.pws, further, strict=True):
            x = widen(x) * gate
        return self.proj_out(x)


class Block(nn.Module):
    """Gated convolution, then a four times wider pair of linear layers, each with a gain per channel."""

    def __init__(self, dim: int, order: int, spectrum: Spectrum, scale: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim, eps=EPS)
        self.gnconv = RecursiveGatedConv(dim, order, spectrum, scale)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma1 = nn.Parameter(torch.full((dim,), 1e-6))
        self.gamma2 = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.gamma1[:, None, None] * self.gnconv(self.norm1(x))
        y = self.norm2(x.permute(0, 2, 3, 1))  # B, H, W, C
        y = self.gamma2 * self.pwconv2(functional.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class HorNet(nn.Module):
    """Four stages of gated convolutions: images [B, 3, H, W] to logits [B, classes].

    `spectra` belong to pictures of one size; at others they are interpolated.
    """

    def __init__(
        self,
        base_dim: int,
        depths: Sequence[int] = DEPTHS,
        orders: Sequence[int] = ORDERS,
        spectra: Sequence[Spectrum] = SPECTRA["7x7"],
        scale: float = 1 / 3,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        dims = [base_dim * 2**i for i in range(len(depths))]
        stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, stride=4), LayerNorm2d(dims[0], eps=EPS))
        self.downsample_layers = nn.ModuleList([stem])
        for narrow, wide in pairwise(dims):
            self.downsample_layers.append(
                nn.Sequential(LayerNorm2d(narrow, eps=EPS), nn.Conv2d(narrow, wide, 2, stride=2))
            )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, order, spectrum, scale) for _ in range(depth)))
            for dim, depth, order, spectrum in zip(dims, depths, orders, spectra, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=EPS)
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean((2, 3))))


def _sources(size: str, mixer: str) -> tuple[Source, ...]:
    share = _SHARED.get((size, mixer))
    return (Source(f"{_SHARE}/{share}/?dl=1"),) if share else ()


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "base_dim": 16,
                "depths": (2, 2, 4, 1),
                "spectra": (None, None, (4, 3), (2, 2)),
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    for name, (title, base_dim, mixers) in _SIZES.items():
        for mixer, (flops, score) in mixers.items():
            size = 384 if mixer.endswith("384") else 224
            variants.append(
                Variant(
                    f"{name}-{mixer}",
                    config={
                        "base_dim": base_dim,
                        "depths": DEPTHS,
                        "spectra": SPECTRA[mixer],
                        "num_classes": 1000,
                    },
                    image=imagenet.evaluation(size) if size < 384 else imagenet.squashed(size),
                    labels=imagenet.labels(),
                    sources=_sources(name, mixer),
                    metrics=(
                        imagenet.top1(score, f"{title}, {mixer}, 1k, {size}x{size}")
                        if score
                        else ()
                    ),
                    flops=int(flops),
                    notes=()
                    if score
                    else (
                        "The authors publish weights of ImageNet-22k only, without the list of their classes: "
                        "fine-tuned weights, or labels of one's own, go with this variant.",
                    ),
                )
            )
    return {variant.name: variant for variant in variants}


@register
class HorNetArchitecture(Architecture):
    """HorNet for the classification of images."""

    slug = "hornet"
    title = "HorNet"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="hornet",
        title="HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions",
        year=2022,
        arxiv="2207.14284",
    )
    origin = "own"
    licence = Licence(code="MIT", weights="MIT")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network; `orders` and `scale` are the published ones unless given."""
        return HorNet(
            config["base_dim"],
            depths=tuple(config["depths"]),
            orders=tuple(config.get("orders", ORDERS)),
            spectra=tuple(config["spectra"]),
            scale=config.get("scale", 1 / 3),
            num_classes=config["num_classes"],
        )

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Open the wrapper (`model` or `module`); the names are the network's own."""
        inner = checkpoint.get("module")
        return unwrapped(inner if isinstance(inner, Mapping) else checkpoint)

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
