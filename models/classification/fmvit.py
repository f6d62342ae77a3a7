"""FMViT: A multiple-frequency mixing Vision Transformer (https://arxiv.org/abs/2311.05707).

A pyramid of convolution and attention made for inference engines. Some blocks only convolve; others split the
channels into parts that each see another band of spatial frequencies, convolutions of several sizes the high
ones and attention over maps of several reductions the low ones, and mix them again. In training each convolution is
a sum of parallel ones, with a BatchNorm each, that fold into a single convolution (`folded`), which
is the form that is served. No code, weights or sizes are published: the parts and their purpose are the paper's, all
that it leaves open (widths, depths, kernels, order inside the blocks) is chosen here, and so are the names.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from models import imagenet
from models.architecture import Architecture, Variant
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task


class ParallelConvolution(nn.Module):
    """Convolutions side by side, each with its BatchNorm, whose outputs are added up.

    `branches`: (kernel, groups) of each; `skip` adds the input, through a BatchNorm of its own.
    Maps [B, in_dim, H, W] to [B, dim, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        branches: Sequence[tuple[int, int]],
        stride: int = 1,
        skip: bool = False,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_dim, dim, kernel, stride, kernel // 2, groups=groups, bias=False),
                nn.BatchNorm2d(dim),
            )
            for kernel, groups in branches
        )
        self.skip = nn.BatchNorm2d(dim) if skip else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.branches[0](x)
        for branch in self.branches[1:]:
            out = out + branch(x)
        return out if self.skip is None else out + self.skip(x)

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """Return the one convolution that computes the same in evaluation mode."""
        first: nn.Conv2d = self.branches[0][0]
        dim, device = first.out_channels, first.weight.device
        parts = [(conv.weight, conv.groups, norm) for conv, norm in self.branches]
        if self.skip is not None:
            parts.append((torch.ones(dim, 1, 1, 1, device=device), dim, self.skip))
        groups = math.gcd(*(count for _, count, _ in parts))
        kernel = max(weight.shape[-1] for weight, _, _ in parts)
        conv = nn.Conv2d(
            first.in_channels,
            dim,
            kernel,
            first.stride,
            kernel // 2,
            groups=groups,
            device=device,
        )
        conv.weight.zero_()
        conv.bias.zero_()
        for weight, count, norm in parts:
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            margin = (kernel - weight.shape[-1]) // 2
            weight = _with_groups(weight * gain.view(-1, 1, 1, 1), count, groups)
            conv.weight += F.pad(weight, (margin,) * 4)
            conv.bias += norm.bias - norm.running_mean * gain
        return conv


def _with_groups(weight: torch.Tensor, count: int, groups: int) -> torch.Tensor:
    """Write the kernels of `count` groups as those of fewer `groups`, with zeros between the groups.

    [dim, in_dim / count, k, k] becomes [dim, in_dim / groups, k, k].
    """
    if count == groups:
        return weight
    dim, width, *kernel = weight.shape
    joined = count // groups
    wide = weight.new_zeros(dim, width * joined, *kernel)
    rows = dim // count
    for group in range(count):
        start = (group % joined) * width
        own = slice(group * rows, (group + 1) * rows)
        wide[own, start : start + width] = weight[own]
    return wide


def _pointwise(in_dim: int, dim: int, groups: Sequence[int]) -> ParallelConvolution:
    """1x1 convolutions with several numbers of groups: the paper's multi-group reparameterisation."""
    return ParallelConvolution(in_dim, dim, [(1, count) for count in groups])


def _depthwise(dim: int, kernel: int) -> ParallelConvolution:
    return ParallelConvolution(dim, dim, [(kernel, dim), (1, dim)], skip=True)


class GroupedMlp(nn.Sequential):
    """The paper's gMLP, two multi-group 1x1 convolutions with ReLU between them, [B, dim, H, W] to the same."""

    def __init__(self, dim: int, ratio: int, groups: Sequence[int]) -> None:
        super().__init__(
            _pointwise(dim, ratio * dim, groups),
            nn.ReLU(),
            _pointwise(ratio * dim, dim, groups),
        )


class ReducedAttention(nn.Module):
    """The paper's RLMHSA: attention to keys and values of a smaller map, [B, dim, H, W] to the same.

    Depthwise convolutions make the map smaller by `reduction`; all projections are multi-group convolutions.
    """

    def __init__(self, dim: int, heads: int, reduction: int, groups: Sequence[int]) -> None:
        super().__init__()
        self.heads = heads
        # Of this width, kernels leave no position out.
        kernel = 2 * reduction - 1
        self.reduce = ParallelConvolution(
            dim, dim, [(kernel, dim), (1, dim)], stride=reduction, skip=reduction == 1
        )
        self.query = _pointwise(dim, dim, groups)
        self.key = _pointwise(dim, dim, groups)
        self.value = _pointwise(dim, dim, groups)
        self.proj = _pointwise(dim, dim, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reduced = self.reduce(x)  # B, C, H/r, W/r
        query, key, value = (
            part.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)  # B, heads, N, d
            for part in (self.query(x), self.key(reduced), self.value(reduced))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(2, 3).reshape(x.shape))


class ConvolutionalFusion(nn.Module):
    """The paper's CFB: a depthwise and a 1x1 convolution, then an MLP, each pair added to what it reads.

    Maps [B, dim, H, W] to the same.
    """

    def __init__(self, dim: int, mlp_ratio: int, groups: Sequence[int]) -> None:
        super().__init__()
        self.local = nn.Sequential(_depthwise(dim, 3), nn.ReLU(), _pointwise(dim, dim, groups))
        self.mlp = GroupedMlp(dim, mlp_ratio, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.local(x)
        return x + self.mlp(x)


class FrequencyMixing(nn.Module):
    """The paper's FMB: equal parts of the channels see different frequencies and are mixed, then an MLP.

    `kernels`: one depthwise convolution each, for the high frequencies; `reductions`: one attention each, for the low.
    Maps [B, dim, H, W] to the same.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int,
        kernels: Sequence[int],
        reductions: Sequence[int],
        mlp_ratio: int,
        groups: Sequence[int],
    ) -> None:
        super().__init__()
        width = dim // (len(kernels) + len(reductions))
        self.high = nn.ModuleList(
            nn.Sequential(_depthwise(width, kernel), nn.ReLU()) for kernel in kernels
        )
        self.low = nn.ModuleList(
            ReducedAttention(width, width // head_dim, reduction, groups)
            for reduction in reductions
        )
        self.fuse = _pointwise(dim, dim, groups)
        self.mlp = GroupedMlp(dim, mlp_ratio, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bands = (*self.high, *self.low)
        parts = x.chunk(len(bands), 1)
        mixed = torch.cat([band(part) for band, part in zip(bands, parts, strict=True)], 1)
        x = x + self.fuse(mixed)
        return x + self.mlp(x)


class FMViT(nn.Module):
    """Maps [B, 3, H, W] to logits [B, num_classes].

    Per stage: `dims`, `convolutions` (number of CFBs), `mixtures` (of FMBs, which follow them) and `reductions` (of
    the attentions in each FMB). `groups`: numbers of groups of every 1x1 convolution's branches.
    """

    def __init__(
        self,
        stem_dim: int,
        dims: Sequence[int],
        convolutions: Sequence[int],
        mixtures: Sequence[int],
        reductions: Sequence[Sequence[int]],
        head_dim: int,
        num_classes: int,
        kernels: Sequence[int] = (3, 5),
        mlp_ratio: int = 2,
        groups: Sequence[int] = (1, 4, 8),
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ParallelConvolution(3, stem_dim, [(3, 1), (1, 1)], stride=2),
            nn.ReLU(),
            ParallelConvolution(stem_dim, stem_dim, [(3, 1), (1, 1)], skip=True),
            nn.ReLU(),
        )
        stages = []
        previous = stem_dim
        for dim, conv_count, mix_count, reduced in zip(
            dims, convolutions, mixtures, reductions, strict=True
        ):
            stages.append(
                nn.Sequential(
                    ParallelConvolution(previous, dim, [(3, 1), (1, 1)], stride=2),
                    *(ConvolutionalFusion(dim, mlp_ratio, groups) for _ in range(conv_count)),
                    *(
                        FrequencyMixing(dim, head_dim, kernels, reduced, mlp_ratio, groups)
                        for _ in range(mix_count)
                    ),
                )
            )
            previous = dim
        self.stages = nn.ModuleList(stages)
        self.norm = nn.BatchNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the stages' maps, at 1/4, 1/8, 1/16 and 1/32 of the image's sides."""
        x = self.stem(image)  # B, stem_dim, H/2, W/2
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.features(image)[-1]).mean((2, 3)))


def folded(network: nn.Module) -> nn.Module:
    """Return a copy for inference, in which every sum of parallel convolutions is one convolution."""
    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ParallelConvolution):
                setattr(module, name, child.folded())
    return network


_INFERRED = "Sizes are this project's own: the paper's are not known, and neither are weights."

_VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            "demo",
            config={
                "stem_dim": 16,
                "dims": (24, 48, 64, 96),
                "convolutions": (1, 2, 2, 1),
                "mixtures": (0, 0, 1, 1),
                "reductions": ((), (), (1, 2), (1, 2)),
                "head_dim": 8,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            notes=(_INFERRED,),
            demo=True,
        ),
        Variant(
            "inferred",
            config={
                "stem_dim": 64,
                "dims": (96, 192, 384, 768),
                "convolutions": (3, 3, 6, 2),
                "mixtures": (0, 1, 3, 1),
                "reductions": ((), (4, 8), (2, 4), (1, 2)),
                "head_dim": 32,
                "num_classes": 1000,
            },
            image=imagenet.evaluation(224),
            labels=imagenet.labels(),
            notes=(_INFERRED,),
        ),
    )
}


@register
class FMViTArchitecture(Architecture):
    """FMViT for the classification of images."""

    slug = "fmvit"
    title = "FMViT"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="fmvit",
        title="FMViT: A multiple-frequency mixing Vision Transformer",
        year=2023,
        arxiv="2311.05707",
    )
    origin = "after the paper"
    licence = Licence(code="none published", weights="none published")
    variants = _VARIANTS

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the training form; `serve` folds it."""
        return FMViT(**config)

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(folded(network), card, device)
