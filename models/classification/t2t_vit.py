"""Tokens-to-Token ViT (https://arxiv.org/abs/2101.11986).

Where ViT cuts a picture into patches once, this network gathers its tokens in three overlapping
soft splits: each unfolds the map into windows, and a narrow attention layer between two splits
condenses a window to 64 values, so that edges and lines survive into the tokens. A deep and narrow
ViT with a fixed sinusoidal position table follows. The narrow layers are Performers (attention
linear in the number of tokens, by random features) or, in the `t` variants, ordinary attention.

Written here under the names of the authors' checkpoints
(https://github.com/yitu-opensource/T2T-ViT); the blocks of the backbone are timm's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.layers import Mlp, trunc_normal_
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn import functional as F

from models import imagenet
from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

PUBLISHED = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main"

# depth of the backbone: (width, heads, MLP ratio)
_SIZES = {
    7: (256, 4, 2.0),
    10: (256, 4, 2.0),
    12: (256, 4, 2.0),
    14: (384, 6, 3.0),
    19: (448, 7, 3.0),
    24: (512, 8, 3.0),
}
# (variant, depth, tokens, resolution, multiply-adds or None, top-1 of ImageNet-1k, file, note)
_RELEASED = (
    ("7", 7, "performer", 224, 1.1e9, 71.7, "71.7_T2T_ViT_7", ""),
    ("10", 10, "performer", 224, 1.5e9, 75.2, "75.2_T2T_ViT_10", ""),
    ("12", 12, "performer", 224, 1.8e9, 76.5, "76.5_T2T_ViT_12", ""),
    ("14", 14, "performer", 224, 4.8e9, 81.5, "81.5_T2T_ViT_14", ""),
    ("14-384", 14, "performer", 384, None, 83.3, "83.3_T2T_ViT_14", "384x384"),
    ("19", 19, "performer", 224, 8.5e9, 81.9, "81.9_T2T_ViT_19", ""),
    ("24", 24, "performer", 224, 13.8e9, 82.3, "82.3_T2T_ViT_24", ""),
    ("24-tl", 24, "performer", 224, 13.8e9, 84.2, "84.2_T2T_ViT_24", "token labelling"),
    ("t-14", 14, "transformer", 224, 6.1e9, 81.7, "81.7_T2T_ViTt_14", ""),
    ("t-19", 19, "transformer", 224, 9.8e9, 82.4, "82.4_T2T_ViTt_19", ""),
    ("t-24", 24, "transformer", 224, 15.0e9, 82.6, "82.6_T2T_ViTt_24", ""),
)


class WideInputAttention(nn.Module):
    """One head of `dim` values over tokens of `inputs` values. Maps [B, N, inputs] to [B, N, dim].

    The way around the attention carries the values, since the input has another width.
    """

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        # By the width of the input, not of the head: the released weights are trained with it.
        self.scale = inputs**-0.5
        self.qkv = nn.Linear(inputs, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return v + self.proj(F.scaled_dot_product_attention(q, k, v, scale=self.scale))


class TokenTransformer(nn.Module):
    """Ordinary attention and an MLP between two soft splits. Maps [B, N, inputs] to [B, N, dim]."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(inputs)
        self.attn = WideInputAttention(inputs, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenPerformer(nn.Module):
    """The same with attention by random features, linear in N. Maps [B, N, inputs] to [B, N, dim].

    The directions `w` [features, dim] are drawn once and belong to the weights.
    """

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.kqv = nn.Linear(inputs, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm1 = nn.LayerNorm(inputs)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.w = nn.Parameter(torch.empty(dim // 2, dim), requires_grad=False)
        nn.init.orthogonal_(self.w, gain=math.sqrt(dim // 2))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return positive features [B, N, F] of float32 vectors [B, N, dim].

        The product of two vectors' features estimates the exponential of the vectors' product.
        """
        half_length = x.square().sum(dim=-1, keepdim=True) / 2
        return torch.exp(x @ self.w.T - half_length) / math.sqrt(self.w.shape[0])

    def attend(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the values and the projected attention over them, both [B, N, dim]."""
        k, q, v = self.kqv(x).chunk(3, dim=-1)
        # The exponentials leave the range of float16 and lose too much in bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            keys, queries, values = self.features(k.float()), self.features(q.float()), v.float()
            weight = queries @ keys.sum(dim=1)[:, :, None]  # B, N, 1
            attended = queries @ (keys.transpose(1, 2) @ values) / (weight + 1e-8)
        return v, self.proj(attended.to(v.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        v, attended = self.attend(self.norm1(x))
        x = v + attended
        return x + self.mlp(self.norm2(x))


_TOKENS: dict[str, type[TokenPerformer | TokenTransformer]] = {
    "performer": TokenPerformer,
    "transformer": TokenTransformer,
}


class TokensToToken(nn.Module):
    """Three soft splits with attention between them. Maps [B, 3, H, W] to [B, H/16 * W/16, dim]."""

    def __init__(self, tokens: str, token_dim: int, dim: int) -> None:
        super().__init__()
        layer = _TOKENS[tokens]
        self.attention1 = layer(3 * 7 * 7, token_dim)
        self.attention2 = layer(token_dim * 3 * 3, token_dim)
        self.project = nn.Linear(token_dim * 3 * 3, dim)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = ((side - 3) // 4 + 1 for side in image.shape[2:])
        x = F.unfold(image, kernel_size=7, stride=4, padding=2).transpose(1, 2)
        x = self.attention1(x).transpose(1, 2).unflatten(2, (height, width))
        height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
        x = F.unfold(x, kernel_size=3, stride=2, padding=1).transpose(1, 2)
        x = self.attention2(x).transpose(1, 2).unflatten(2, (height, width))
        x = F.unfold(x, kernel_size=3, stride=2, padding=1).transpose(1, 2)
        return self.project(x)


class T2TViT(nn.Module):
    """Soft splits and a ViT. Maps [B, 3, S, S], S being `image_size`, to logits [B, classes]."""

    def __init__(
        self,
        tokens: str,
        image_size: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        token_dim: int = 64,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.tokens_to_token = TokensToToken(tokens, token_dim, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        grid = _grid(image_size)
        self.pos_embed = nn.Parameter(sinusoid(1 + grid * grid, dim)[None], requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, qkv_bias=False, norm_layer=nn.LayerNorm)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(_initialise)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.tokens_to_token(image)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def sinusoid(count: int, dim: int) -> torch.Tensor:
    """Return the table [count, dim] of fixed positions: sines in even, cosines in odd columns."""
    column = torch.arange(dim)
    rate = 10000.0 ** (2 * (column // 2).double() / dim)
    angle = torch.arange(count).double()[:, None] / rate
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


def resized_positions(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Resize a table [1, 1 + n * n, dim], class position first, to [1, 1 + grid * grid, dim]."""
    side = math.isqrt(table.shape[1] - 1)
    if side == grid:
        return table
    places = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    places = F.interpolate(places.float(), size=(grid, grid), mode="bicubic").to(table.dtype)
    return torch.cat((table[:, :1], places.flatten(2).transpose(1, 2)), dim=1)


def _grid(size: int) -> int:
    for kernel, stride, padding in ((7, 4, 2), (3, 2, 1), (3, 2, 1)):
        size = (size + 2 * padding - kernel) // stride + 1
    return size


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "tokens": "performer",
                "image_size": 64,
                "dim": 96,
                "depth": 3,
                "heads": 3,
                "mlp_ratio": 2.0,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    for name, depth, tokens, size, flops, score, file, note in _RELEASED:
        dim, heads, mlp_ratio = _SIZES[depth]
        variants.append(
            Variant(
                name,
                config={
                    "tokens": tokens,
                    "image_size": size,
                    "dim": dim,
                    "depth": depth,
                    "heads": heads,
                    "mlp_ratio": mlp_ratio,
                    "num_classes": 1000,
                },
                image=imagenet.evaluation(size, crop=0.9),
                labels=imagenet.labels(),
                sources=(Source(f"{PUBLISHED}/{file}.pth.tar"),),
                metrics=imagenet.top1(score, note),
                flops=None if flops is None else int(flops),
            )
        )
    return {variant.name: variant for variant in variants}


@register
class T2TViTArchitecture(Architecture):
    """T2T-ViT for the classification of images."""

    slug = "t2t-vit"
    title = "T2T-ViT"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="t2t-vit",
        title="Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet",
        year=2021,
        arxiv="2101.11986",
    )
    origin = "own"
    licence = Licence(code="BSD-3-Clause-Clear", weights="BSD-3-Clause-Clear")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network from `T2TViT`'s arguments."""
        return T2TViT(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Take the averaged weights where a checkpoint has them; fit the position table to the input's size."""
        averaged = checkpoint.get("state_dict_ema")
        state = unwrapped(averaged if isinstance(averaged, Mapping) else checkpoint)
        if "pos_embed" in state:
            state["pos_embed"] = resized_positions(state["pos_embed"], _grid(config["image_size"]))
        return state

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
