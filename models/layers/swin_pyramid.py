"""Swin Transformer without its classifier: the maps of its stages, for detection and segmentation.

It differs from the classifier in what happens to maps that windows do not divide: they are filled up with
zeros before they are shifted, and windows never shrink, even where a map is smaller than one. Names are
the authors' own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from timm.layers import Mlp
from timm.models.swin_transformer import (
    PatchMerging,
    WindowAttention,
    window_partition,
    window_reverse,
)
from torch import nn
from torch.nn import functional as F

# What a pair of places that the shift made neighbours loses before the softmax.
_APART = -100.0


class SwinPyramid(nn.Module):
    """Maps pictures [B, 3, H, W] to maps [B, dim * 2^i, H / 2^(i + 2), W / 2^(i + 2)], sides rounded up, normalised.

    The normalised maps are not what the next stage gets.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int = 7,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.dims = tuple(dim * 2**i for i in range(len(depths)))
        self.patch_embed = nn.Sequential(
            OrderedDict(proj=nn.Conv2d(3, dim, 4, stride=4), norm=nn.LayerNorm(dim))
        )
        self.layers = nn.ModuleList(
            _Stage(width, depth, count, window, mlp_ratio, last=i == len(depths) - 1)
            for i, (width, depth, count) in enumerate(zip(self.dims, depths, heads, strict=True))
        )
        for number, width in enumerate(self.dims):
            self.add_module(f"norm{number}", nn.LayerNorm(width))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        x = F.pad(image, (0, -image.shape[3] % 4, 0, -image.shape[2] % 4))
        x = self.patch_embed.norm(self.patch_embed.proj(x).permute(0, 2, 3, 1))  # B, H/4, W/4, dim
        maps = []
        for number, stage in enumerate(self.layers):
            for block in stage.blocks:
                x = block(x)
            normalised = self.get_submodule(f"norm{number}")(x)
            maps.append(normalised.permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps


class _Stage(nn.Module):
    """Blocks of one width, every second one with shifted windows; all but the last stage end in a merging."""

    def __init__(
        self, dim: int, depth: int, heads: int, window: int, mlp_ratio: float, *, last: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Block(dim, heads, window, window // 2 if i % 2 else 0, mlp_ratio) for i in range(depth)
        )
        self.downsample = None if last else PatchMerging(dim)


class _Block(nn.Module):
    """Attention inside windows, then a perceptron. Maps [B, H, W, C] to the same."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window_size=window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.window, self.shift = window, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._attended(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attended(self, x: torch.Tensor) -> torch.Tensor:
        _, height, width, channels = x.shape
        side = (self.window, self.window)
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        rows, columns = x.shape[1:3]
        mask = None
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
            mask = self._mask(x)
        windows = window_partition(x, side).flatten(1, 2)  # B * windows, window^2, C
        windows = self.attn(windows, mask=mask).view(-1, *side, channels)
        x = window_reverse(windows, side, rows, columns)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def _mask(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added to the attention of every pair in a window: [windows, window^2, window^2]."""
        parts = [
            torch.bucketize(
                torch.arange(size, device=x.device),
                torch.tensor([size - self.window, size - self.shift], device=x.device),
                right=True,
            )
            for size in x.shape[1:3]
        ]
        region = (3 * parts[0][:, None] + parts[1]).view(1, *x.shape[1:3], 1)
        inside = window_partition(region, (self.window, self.window)).flatten(1)
        return _APART * (inside[:, None] != inside[:, :, None]).to(x.dtype)
