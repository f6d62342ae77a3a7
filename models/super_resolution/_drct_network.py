"""DRCT's network under its authors' names, for pictures of any number of whole windows.

A block only ever mixes positions of one window, so windows go through it a few at a time: beside the map itself,
the memory does not grow with the picture.
"""

from __future__ import annotations

import torch
from timm.layers import Mlp
from timm.models.swin_transformer import (
    get_relative_position_index,
    window_partition,
    window_reverse,
)
from torch import nn
from torch.nn import functional

MEAN = (0.4488, 0.4371, 0.4040)
BLOCKS = 5
# Width of the map from which the larger picture is made, whatever the width before it.
_FEATURES = 64
# How much of a group's result is added to what came in.
_SHARE = 0.2
# Added to the scores of positions that the shift brought together from opposite edges.
_APART = -100.0
# How many scores of attention are held at a time, of all heads and windows together.
_SCORES = 1 << 24


class PointwiseConv(nn.Conv2d):
    """A convolution of single pixels, on maps with the channels last: [B, H, W, C] to [B, H, W, D]."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight.flatten(1), self.bias)


class WindowAttention(nn.Module):
    """Self-attention among the N = `window`² positions of each window: [windows, N, C] to the same."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        index = get_relative_position_index(window, window)
        self.register_buffer("relative_position_index", index, persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def bias(self) -> torch.Tensor:
        """Return what is added to the scores for how two positions lie to each other: [heads, N, N]."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(x.transpose(1, 2).flatten(2))


class SwinBlock(nn.Module):
    """Window attention, then two linear layers: [B, H, W, C] to the same; H and W are multiples of `window`."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, height, width, _ = x.shape
        size = (self.window, self.window)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = window_partition(x, size).flatten(1, 2)  # B * windows, N, C
        bias = self.attn.bias()
        few = max(1, _SCORES // bias.numel())
        if self.shift:
            regions = self._regions(height, width, x.device).repeat(count, 1)
            parts = [
                self._within(part, bias + _apart(region).to(bias.dtype)[:, None])
                for part, region in zip(windows.split(few), regions.split(few), strict=True)
            ]
        else:
            parts = [self._within(part, bias) for part in windows.split(few)]
        x = window_reverse(torch.cat(parts).unflatten(1, size), size, height, width)
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x

    def _within(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), bias)
        return x + self.mlp(self.norm2(x))

    def _regions(self, height: int, width: int, device: torch.device) -> torch.Tensor:
        """Number the parts of a shifted map that were neighbours before the shift: [windows, N]."""
        rows, columns = (self._bands(side, device) for side in (height, width))
        regions = 3 * rows[:, None] + columns
        return window_partition(regions[None, :, :, None], (self.window, self.window)).flatten(1)

    def _bands(self, side: int, device: torch.device) -> torch.Tensor:
        place = torch.arange(side, device=device)
        return (place >= side - self.window).int() + (place >= side - self.shift).int()


def _apart(regions: torch.Tensor) -> torch.Tensor:
    """Return 0 for positions of one region and a large negative number for others: [windows, N, N]."""
    return (regions[:, :, None] != regions[:, None, :]) * _APART


class ResidualDenseGroup(nn.Module):
    """Five Swin blocks, each of which sees what came in and what all before it found: [B, H, W, C] to the same.

    Every block's result is reduced to `growth` channels, the last one's to C. Each second block is shifted by
    half a window, and the last two have narrower MLPs. A block has `heads` heads, less the remainder of its
    width by `heads`: so the authors get head counts that divide the widths 180, 212, 244, 276 and 308.
    """

    def __init__(
        self, dim: int, heads: int, window: int, shift: int, growth: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        for number in range(1, BLOCKS + 1):
            width = dim + (number - 1) * growth
            block = SwinBlock(
                width,
                heads - width % heads if number > 1 else heads,
                window,
                shift if number % 2 == 0 else 0,
                mlp_ratio if number < 4 else 1.0,
            )
            self.add_module(f"swin{number}", block)
            self.add_module(
                f"adjust{number}", PointwiseConv(width, growth if number < BLOCKS else dim)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [x]
        for number in range(1, BLOCKS):
            found.append(functional.leaky_relu(self._reduced(number, found), 0.2))
        return x + _SHARE * self._reduced(BLOCKS, found)

    def _reduced(self, number: int, found: list[torch.Tensor]) -> torch.Tensor:
        swin, adjust = getattr(self, f"swin{number}"), getattr(self, f"adjust{number}")
        return adjust(swin(torch.cat(found, -1)))


class PatchEmbedding(nn.Module):
    """Every pixel is a token: a map [B, C, H, W] to normalised tokens [B, H, W, C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1))


class DRCT(nn.Module):
    """Pictures [B, 3, H, W] in 0..1 to [B, 3, `scale` H, `scale` W], about 0..1; H and W are multiples of `window`.

    `scale`: 3 or a power of 2. `heads`: for each group. `image_size` only matters where it is no larger than
    the window, which then becomes as small and is not shifted.
    """

    def __init__(
        self,
        scale: int,
        dim: int = 180,
        heads: tuple[int, ...] = (6,) * 6,
        window: int = 16,
        growth: int = 32,
        mlp_ratio: float = 2.0,
        image_size: int = 64,
        image_range: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.window = min(window, image_size)
        self.image_range = image_range
        shift = window // 2 if window < image_size else 0
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.patch_embed = PatchEmbedding(dim)
        self.layers = nn.ModuleList(
            ResidualDenseGroup(dim, count, self.window, shift, growth, mlp_ratio) for count in heads
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(
            nn.Conv2d(dim, _FEATURES, 3, padding=1), nn.LeakyReLU()
        )
        self.upsample = nn.Sequential(*_upsampling(scale))
        self.conv_last = nn.Conv2d(_FEATURES, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = self.conv_first((image - self.mean) * self.image_range)
        tokens = self.patch_embed(first)
        for group in self.layers:
            tokens = group(tokens)
        x = first + self.conv_after_body(self.norm(tokens).permute(0, 3, 1, 2))
        x = self.conv_last(self.upsample(self.conv_before_upsample(x)))
        return x / self.image_range + self.mean


def _upsampling(scale: int) -> list[nn.Module]:
    if scale == 3:
        return [nn.Conv2d(_FEATURES, 9 * _FEATURES, 3, padding=1), nn.PixelShuffle(3)]
    if scale < 2 or scale & (scale - 1):
        raise ValueError(f"a scale of {scale}; it must be 3 or a power of 2")
    doubling: list[nn.Module] = []
    for _ in range(scale.bit_length() - 1):
        doubling += [nn.Conv2d(_FEATURES, 4 * _FEATURES, 3, padding=1), nn.PixelShuffle(2)]
    return doubling
