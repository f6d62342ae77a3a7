"""ViT-ResNAS: Searching for Efficient Multi-Stage Vision Transformers (https://arxiv.org/abs/2109.00642).

A vision transformer of three stages. Between them a residual reduction halves the sides of the map: a strided
convolution of the normalised patches, beside their plain 2x2 mean padded with zero channels; the class token passes through
a linear layer and likewise keeps itself. How many heads and how wide an MLP each block has was found by
an evolutionary search over one large network that shares its weights. `network_def` gives the result in the
authors' own notation, so that a line of their scripts can be used as it stands. Names are those of the authors' code
(yilunliao/vit-search); their weights are in a shared folder without addresses of single files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import Mlp, PatchEmbed
from torch import nn
from torch.nn import functional as F

from models import imagenet
from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Metric, Paper, Task

NetworkDef = Sequence[Sequence[Any]]

# First number of an entry of `network_def`.
EMBED, BLOCK, HEAD, REDUCTION, CONV_EMBED, CONV_EMBED_OF_WIDTH = range(6)
_EPS = 1e-6
_STEM_WIDTH = 24
_HEAD_DIMS = (32, 48, 64)


def _definition(
    dims: Sequence[int],
    stages: Sequence[Sequence[tuple[int, int]]],
    head_dims: Sequence[int] = _HEAD_DIMS,
    classes: int = 1000,
) -> NetworkDef:
    """Return the `network_def` of stages of (heads, MLP width)."""
    entries: list[tuple[Any, ...]] = [(CONV_EMBED, dims[0])]
    for number, (dim, head_dim, blocks) in enumerate(zip(dims, head_dims, stages, strict=True)):
        if number:
            entries.append((REDUCTION, dims[number - 1], dim))
        entries += [(BLOCK, (dim, heads, head_dim), (dim, width), 1) for heads, width in blocks]
    return (*entries, (HEAD, dims[-1], classes))


class ConvNorm(nn.Module):
    """3x3 convolution, batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class ConvEmbed(nn.Module):
    """Three convolutions at half the size, then one per patch: [B, 3, H, W] to [B, patches, dim]."""

    def __init__(self, dim: int, patch: int, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, width, stride=2)
        self.conv2 = ConvNorm(width, width)
        self.conv3 = ConvNorm(width, width)
        self.conv_proj = nn.Conv2d(width, dim, patch // 2, stride=patch // 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = self.conv1(image)
        x = self.conv3(self.conv2(first)) + first
        return self.conv_proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Attention whose heads together may be wider or narrower than the sequence."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # B, heads, N, head_dim
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, each on the normalised sequence and added to it."""

    def __init__(self, dim: int, heads: int, head_dim: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.attn = Attention(dim, heads, head_dim)
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = Mlp(dim, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SpatialReduction(nn.Module):
    """Halve the map's sides: [B, tokens + side^2, inputs] to [B, tokens + (side / 2)^2, outputs]."""

    def __init__(self, side: int, inputs: int, outputs: int, tokens: int) -> None:
        super().__init__()
        self.side = side
        self.tokens = tokens
        self.added = outputs - inputs
        self.pos_embed = nn.Parameter(torch.randn(1, (side // 2) ** 2, outputs) * 0.02)
        self.norm = nn.LayerNorm(inputs, eps=_EPS)
        self.patch_reduce = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.token_transform = nn.Linear(inputs, outputs)

    def _split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        patches = x[:, self.tokens :].transpose(1, 2).unflatten(2, (self.side, self.side))
        return x[:, : self.tokens], patches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept_tokens, kept_map = self._split(x)
        tokens, patches = self._split(self.norm(x))
        reduced = self.patch_reduce(patches).flatten(2).transpose(1, 2) + self.pos_embed
        pooled = F.avg_pool2d(kept_map, 2).flatten(2).transpose(1, 2)
        kept = F.pad(torch.cat((kept_tokens, pooled), dim=1), (0, self.added))
        return torch.cat((self.token_transform(tokens), reduced), dim=1) + kept


class ViTRes(nn.Module):
    """The network: square pictures [B, 3, S, S] of the size it was built for to logits [B, classes].

    `network_def`: (4, dim) or (5, dim, width) a stem of convolutions, (0, dim) plain patches; (1, (dim, heads,
    head_dim), (dim, MLP width), 1) a block, with 0 at the end one that the search removed; (3, inputs, outputs)
    a reduction; (2, dim, classes) the head. `distilled`: a second token with a head of its own, whose
    logits are averaged with those of the class token.
    """

    def __init__(
        self,
        network_def: NetworkDef,
        *,
        image_size: int,
        patch_size: int,
        num_classes: int,
        distilled: bool = False,
    ) -> None:
        super().__init__()
        side = image_size // patch_size
        reductions = sum(kind == REDUCTION for kind, *_ in network_def)
        if image_size % (patch_size << reductions):
            raise ValueError(f"image_size must be a multiple of {patch_size << reductions}")
        (kind, dim, *width), *body, _head = network_def
        if kind == EMBED:
            self.patch_embed: nn.Module = PatchEmbed(image_size, patch_size, embed_dim=dim)
        else:
            self.patch_embed = ConvEmbed(dim, patch_size, *(width or (_STEM_WIDTH,)))
        count = 2 if distilled else 1
        self.tokens = nn.Parameter(torch.randn(1, count, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, count + side**2, dim) * 0.02)
        self.blocks = nn.ModuleList()
        for kind, *entry in body:
            if kind == REDUCTION:
                inputs, dim = entry
                self.blocks.append(SpatialReduction(side, inputs, dim, count))
                side //= 2
            else:
                (_, heads, head_dim), (_, hidden), exists = entry
                block = Block(dim, heads, head_dim, hidden) if exists else nn.Identity()
                self.blocks.append(block)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.cls_head = nn.Linear(dim, num_classes)
        self.dst_head = nn.Linear(dim, num_classes) if distilled else None

    def heads(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the logits of each token: one tensor, or two where the network is distilled."""
        x = self.patch_embed(image)
        x = torch.cat((self.tokens.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x[:, : self.tokens.shape[1]])
        logits = self.cls_head(x[:, 0])
        return (logits,) if self.dst_head is None else (logits, self.dst_head(x[:, 1]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.heads(image)
        return sum(logits[1:], logits[0]) / len(logits)


def resized(positions: torch.Tensor, tokens: int, side: int) -> torch.Tensor:
    """Return a table of positions [1, tokens + n, dim] for a map of side x side patches (bicubic)."""
    old = round((positions.shape[1] - tokens) ** 0.5)
    if old == side:
        return positions
    patches = positions[:, tokens:].transpose(1, 2).unflatten(2, (old, old))
    patches = F.interpolate(patches, (side, side), mode="bicubic", align_corners=False)
    return torch.cat((positions[:, :tokens], patches.flatten(2).transpose(1, 2)), dim=1)


# name: (title, widths, (heads, MLP width) of each block of each stage, multiply-adds at 224, top-1)
_SEARCHED: dict[str, tuple[str, tuple[int, ...], list[list[tuple[int, int]]], float, float]] = {
    "tiny": (
        "ViT-ResNAS-Tiny",
        (176, 352, 704),
        [
            [(3, 704), (3, 576), (3, 640), (4, 576), (4, 704)],
            [(10, 1408), (8, 1408), (8, 1280), (8, 1408), (10, 1280), (10, 1024)],
            [(10, 2560), (10, 1792), (10, 2816), (8, 2816), (8, 2560)],
        ],
        1.8e9,
        80.8,
    ),
    "small": (
        "ViT-ResNAS-Small",
        (220, 440, 880),
        [
            [(5, 880), (5, 880), (7, 800), (5, 720), (5, 720), (5, 720)],
            [(10, 1760), (10, 1440), (10, 1920), (10, 1600), (12, 1600), (12, 1440)],
            [(16, 3200), (12, 3200), (16, 2880), (12, 2240), (14, 2560)],
        ],
        2.8e9,
        81.7,
    ),
    "medium": (
        "ViT-ResNAS-Medium",
        (240, 640, 880),
        [
            [(7, 960), (6, 960), (7, 800), (8, 960), (7, 880), (8, 880), (6, 800)],
            [
                *((10, 1120), (14, 1760), (14, 1920), (16, 1760), (14, 1440)),
                *((16, 1760), (16, 1920)),
            ],
            [(16, 3200), (10, 3840), (16, 3840), (12, 3200), (16, 3520), (14, 3520)],
        ],
        4.5e9,
        82.4,
    ),
}
_FINE_TUNED = {"medium": (280, 336, 392)}


def _variant(
    name: str,
    network_def: NetworkDef,
    size: int,
    *,
    metrics: tuple[Metric, ...] = (),
    flops: float | None = None,
) -> Variant:
    return Variant(
        name,
        config={
            "network_def": network_def,
            "image_size": size,
            "patch_size": 14,
            "num_classes": 1000,
        },
        image=imagenet.evaluation(size),
        labels=imagenet.labels(),
        metrics=metrics,
        flops=int(flops) if flops else None,
        notes=("The licence of code and weights forbids commercial use.",),
    )


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            # Patches of 4 give the sequences of 256, 64 and 16 patches that the networks have at 224.
            config={
                "network_def": _definition(
                    (40, 80, 120),
                    [[(2, 160), (2, 128)], [(3, 256), (3, 192)], [(3, 384)]],
                    (16, 24, 32),
                    len(shapes.LABELS),
                ),
                "image_size": 64,
                "patch_size": 4,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    for name, (title, dims, stages, flops, score) in _SEARCHED.items():
        network_def = _definition(dims, stages)
        metrics = imagenet.top1(score, f"{title}, 224x224; figure taken at second hand")
        variants.append(_variant(f"{name}-224", network_def, 224, metrics=metrics, flops=flops))
        variants += [
            _variant(f"{name}-{size}", network_def, size) for size in _FINE_TUNED.get(name, ())
        ]
    uniform = _definition(
        (192, 384, 768), [[(3, 768)] * 4, [(6, 1536)] * 4, [(12, 3072)] * 4], (64, 64, 64)
    )
    variants.append(_variant("unsearched-tiny-224", uniform, 224))
    return {variant.name: variant for variant in variants}


@register
class ViTResNASArchitecture(Architecture):
    """ViT-ResNAS for the classification of images."""

    slug = "vit-resnas"
    title = "ViT-ResNAS"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="vit-resnas",
        title="Searching for Efficient Multi-Stage Vision Transformers",
        year=2021,
        arxiv="2109.00642",
    )
    origin = "own"
    licence = Licence(code="CC-BY-NC-4.0", weights="CC-BY-NC-4.0", commercial=False)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network that `network_def` describes, for square pictures of `image_size`."""
        return ViTRes(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Take the averaged weights where a checkpoint holds them, and fit all three tables of positions.

        The head of the patches serves training only, and is dropped.
        """
        averaged = checkpoint.get("model_ema")
        state = unwrapped(averaged if isinstance(averaged, Mapping) else checkpoint)
        state = {k: v for k, v in state.items() if not k.startswith("patch_head.")}
        side = config["image_size"] // config["patch_size"]
        if "pos_embed" in state:
            tokens = 2 if config.get("distilled") else 1
            state["pos_embed"] = resized(state["pos_embed"], tokens, side)
        for number, (kind, *_) in enumerate(config["network_def"][1:-1]):
            if kind == REDUCTION:
                side //= 2
                name = f"blocks.{number}.pos_embed"
                if name in state:
                    state[name] = resized(state[name], 0, side)
        return state

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
