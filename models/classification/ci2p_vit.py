"""CI2P-ViT: Compress image to patches for Vision Transformer (https://arxiv.org/abs/2502.10120).

A ViT whose patch embedding is the analysis half of a learned image codec: four strided convolutions with
generalised divisive normalisation between them (the factorised-prior network of CompressAI, trained for
compression and then frozen). Two inverted residual blocks make its latent map the tokens, one for
32x32 pixels: a picture of 256x256 is a sequence of 64, a quarter of ViT-B/16's. There is neither a
class token nor a table of positions, so any sides that are multiples of 32 will do; the head takes the mean of
the tokens. In the dual-scale network (CI2P-ViT-ds) narrow layers first attend over the latent map at 16x16 pixels a
token, and a third block halves and widens it for the rest.

Names are those of the authors' code (https://github.com/fanchy/ci2pvit, on mmpretrain). They publish no trained
network; the codec's weights alone are CompressAI's (bmshj2018-factorized, mse, quality 5).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import Attention, make_divisible
from torch import nn
from torch.nn import functional as F

from models import imagenet
from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Metric, Paper, Task

# (depth, width, heads, width of the MLP) of layers of one width.
Stage = Sequence[int]

_EPS = 1e-6
# CompressAI keeps square roots: x is stored as sqrt(x + PEDESTAL), which has a gradient at 0 too.
_PEDESTAL = 2.0**-36
_SMALLEST_BETA = 1e-6


class GDN(nn.Module):
    """Generalised divisive normalisation: each channel over sqrt(beta + gamma of all squared channels).

    Maps [B, C, H, W] to the same. `beta` [C] and `gamma` [C, C] hold the roots of what is meant, and
    roots below those of the smallest values allowed count as these.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.full((channels,), (1 + _PEDESTAL) ** 0.5))
        self.gamma = nn.Parameter((0.1 * torch.eye(channels) + _PEDESTAL).sqrt())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        beta = _squared(self.beta, _SMALLEST_BETA)
        gamma = _squared(self.gamma, 0.0)[:, :, None, None]
        return x * torch.rsqrt(F.conv2d(x.square(), gamma, beta))


def _squared(root: torch.Tensor, smallest: float) -> torch.Tensor:
    return root.clamp(min=(smallest + _PEDESTAL) ** 0.5).square() - _PEDESTAL


class Encoder(nn.Sequential):
    """The codec's analysis transform: [B, 3, H, W] in 0..1 to the latent [B, `latent`, H/16, W/16], not rounded."""

    def __init__(self, dim: int, latent: int) -> None:
        super().__init__(
            *(_halving(3, dim), GDN(dim)),
            *(_halving(dim, dim), GDN(dim)),
            *(_halving(dim, dim), GDN(dim)),
            _halving(dim, latent),
        )


def _halving(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 5, stride=2, padding=2)


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm and, if `active`, Hardswish."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        active: bool = True,
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        layers: list[tuple[str, nn.Module]] = [("conv", conv), ("bn", nn.BatchNorm2d(outputs))]
        if active:
            layers.append(("activation", nn.Hardswish()))
        super().__init__(OrderedDict(layers))


class SqueezeExcitation(nn.Module):
    """Weighs the channels of [B, C, H, W] by what their means say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels // 4, 8)
        self.conv1 = nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, squeezed, 1)))
        self.conv2 = nn.Sequential(OrderedDict(conv=nn.Conv2d(squeezed, channels, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.conv2(self.conv1(x.mean((2, 3), keepdim=True)).relu())
        return x * F.hardsigmoid(weights)


class InvertedResidual(nn.Module):
    """1x1 convolution to `hidden` channels, a depthwise one, squeeze and excitation, 1x1 to `outputs`.

    Added to its input [B, inputs, H, W] where the shape stays the same.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, kernel: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        self.expand_conv = ConvNorm(inputs, hidden)
        self.depthwise_conv = ConvNorm(hidden, hidden, kernel, stride, groups=hidden)
        self.se = SqueezeExcitation(hidden)
        self.linear_conv = ConvNorm(hidden, outputs, active=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear_conv(self.se(self.depthwise_conv(self.expand_conv(x))))
        return x + y if self.residual else y


class PatchEmbedding(nn.Module):
    """Pictures [B, 3, H, W] in 0..1 to a map of tokens: [B, dim, H/32, W/32], or H/16, W/16 if not `halve`."""

    def __init__(self, encoder_dim: int, latent: int, dim: int, *, halve: bool) -> None:
        super().__init__()
        self.compressai = Encoder(encoder_dim, latent)
        last = (
            InvertedResidual(latent, 6 * latent, dim, kernel=5, stride=2)
            if halve
            else InvertedResidual(latent, 4 * latent, dim)
        )
        self.patchReshape = nn.Sequential(InvertedResidual(latent, 4 * latent, latent), last)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.patchReshape(self.compressai(image))


class FeedForward(nn.Module):
    """Two linear layers with GELU between them. Maps [B, N, dim] to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(dim, hidden), nn.GELU())
        self.layers = nn.Sequential(first, nn.Linear(hidden, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Layer(nn.Module):
    """Attention and MLP, each of the normalised tokens [B, N, dim] and added to them."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(dim, eps=_EPS)
        self.attn = Attention(dim, heads, qkv_bias=True)
        self.ln2 = nn.LayerNorm(dim, eps=_EPS)
        self.ffn = FeedForward(dim, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class Transformer(nn.Module):
    """Layers of one width, or of two with a block between them that halves the map.

    Maps [B, dim of the first, h, w] to normalised tokens [B, N, dim of the last], row by row of the map.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(dim, heads, hidden) for depth, dim, heads, hidden in stages for _ in range(depth)
        )
        (narrow, first, *_), (_, last, *_) = stages[0], stages[-1]
        self._narrow = narrow if len(stages) == 2 else 0
        if self._narrow:
            self.patchReshape = InvertedResidual(first, 6 * first, last, kernel=5, stride=2)
        self.ln1 = nn.LayerNorm(last, eps=_EPS)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        size = patches.shape[2:]
        x = _tokens(patches)
        for number, layer in enumerate(self.layers):
            if self._narrow and number == self._narrow:
                x = _tokens(self.patchReshape(x.transpose(1, 2).unflatten(2, size)))
            x = layer(x)
        return self.ln1(x)


def _tokens(patches: torch.Tensor) -> torch.Tensor:
    return patches.flatten(2).transpose(1, 2)


class Backbone(nn.Module):
    """Codec and transformer: pictures [B, 3, H, W], normalised by ImageNet's statistics, to tokens [B, N, dim]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, encoder_dim: int, latent: int, stages: Sequence[Stage]) -> None:
        super().__init__()
        # Undone here, since the codec was trained on pictures in 0..1.
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.to_patch_embedding = PatchEmbedding(
            encoder_dim, latent, stages[0][1], halve=len(stages) == 1
        )
        self.transformer = Transformer(stages)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.transformer(self.to_patch_embedding(image * self.std + self.mean))


class Head(nn.Module):
    """Linear classifier: [B, dim] to logits [B, classes]."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


class CI2PViT(nn.Module):
    """The network: [B, 3, H, W], with sides that are multiples of 32, to logits [B, num_classes].

    `encoder_dim` and `latent`: widths of the codec (N and M in CompressAI). `stages`: one, or two of the
    dual-scale network, each (depth, width, heads, width of the MLP).
    """

    def __init__(
        self, encoder_dim: int, latent: int, stages: Sequence[Stage], num_classes: int
    ) -> None:
        super().__init__()
        if len(stages) not in (1, 2):
            raise ValueError(f"{len(stages)} stages; there are networks of one and of two")
        self.backbone = Backbone(encoder_dim, latent, stages)
        self.head = Head(stages[-1][1], num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(image).mean(dim=1))


# Of Animals-10, in the order of its folders, whose names are Italian: cane, cavallo, ... scoiattolo.
_ANIMALS = (
    *("dog", "horse", "elephant", "butterfly", "chicken"),
    *("cat", "cow", "sheep", "spider", "squirrel"),
)
_IMAGE = ImageInput(
    height=256, width=256, resize="shorter-side", resize_to=292, interpolation="bicubic"
)
_STAGES: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "base": ((12, 768, 12, 3072),),
    "small": ((8, 768, 8, 2304),),
    "ds": ((6, 192, 3, 768), (6, 768, 12, 3072)),
}
_UNPUBLISHED = "The authors publish no weights of this network."
_ORDER = "Weights trained on folders of other names have another order of classes: give their labels with them."
_SECOND_HAND = "figure taken at second hand"
_METRICS = {
    ("base", "animals10"): (
        Metric(name="top-1", value=92.37, dataset="Animals-10", origin="published"),
    ),
    ("ds", "imagenet"): imagenet.top1(77.0, f"CI2P-ViT-ds, rounded; {_SECOND_HAND}"),
}


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "encoder_dim": 32,
                "latent": 48,
                "stages": ((3, 96, 6, 192),),
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    for name, stages in _STAGES.items():
        for data, labels in (("animals10", _ANIMALS), ("imagenet", imagenet.labels())):
            variants.append(
                Variant(
                    f"{name}-{data}",
                    config={
                        "encoder_dim": 128,
                        "latent": 192,
                        "stages": stages,
                        "num_classes": len(labels),
                    },
                    image=_IMAGE,
                    labels=labels,
                    metrics=_METRICS.get((name, data), ()),
                    notes=(_UNPUBLISHED, _ORDER) if labels is _ANIMALS else (_UNPUBLISHED,),
                )
            )
    return {variant.name: variant for variant in variants}


@register
class CI2PViTArchitecture(Architecture):
    """CI2P-ViT, of one scale and of two, for the classification of images."""

    slug = "ci2p-vit"
    title = "CI2P-ViT"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="ci2p-vit",
        title="Compress image to patches for Vision Transformer",
        year=2025,
        arxiv="2502.10120",
    )
    origin = "own"
    # The codec's weights, which a trained network contains, are CompressAI's.
    licence = Licence(code="Apache-2.0", weights="none published")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network from `CI2PViT`'s arguments."""
        return CI2PViT(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Drop the constants that CompressAI saves beside the weights of each normalisation."""
        return {
            name: value for name, value in unwrapped(checkpoint).items() if "_reparam." not in name
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
