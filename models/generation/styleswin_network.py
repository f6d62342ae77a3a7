"""StyleSwin: "Transformer-based GAN for High-resolution Image Generation" (CVPR 2022).

https://arxiv.org/abs/2112.10762; code and weights: microsoft/StyleSwin, MIT.

StyleGAN2's generator with Swin blocks in place of convolutions, and without its noise.
What differs from a plain Swin block:

* double attention (section 3.2): half of the heads look at windows, half at windows shifted by half their
  side, in one layer;
* the style enters by adaptive instance normalisation in place of layer normalisation (section 3.1);
* a sinusoidal position is added after each upsampling, so that tokens know where they are in the whole picture
  and not only in their window (section 3.3).

Names and shapes of the state dict are those of the authors' `Generator` class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from models.architecture import StateDict, unwrapped
from models.layers.stylegan import EqualizedLinear, fir_kernel, upsampled

_WINDOW = 8
_BLOCKS = 2
_WIDEST = 512
_BLOCKED = -100.0


@dataclass(frozen=True)
class StyleSwinConfig:
    """Configuration under the authors' argument names; they release 256 pixels with a channel
    multiplier of 2, and 1024 with 1.

    Up to `enable_full_resolution` a window is the whole picture.
    """

    size: int = 256
    style_dim: int = 512
    n_mlp: int = 8
    channel_multiplier: int = 2
    lr_mlp: float = 0.01
    enable_full_resolution: int = 8

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The stages' resolutions. Raises ValueError unless `size` is a power of two from 8."""
        stages = int(math.log2(self.size)) - 1
        if stages < 2 or 2 ** (stages + 1) != self.size:
            raise ValueError(f"size {self.size} is no power of two from 8")
        return tuple(4 * 2**i for i in range(stages))

    def width(self, resolution: int) -> int:
        """Return the number of channels at a resolution."""
        if resolution <= 32:
            return _WIDEST
        return 64 * 256 // resolution * self.channel_multiplier

    def window(self, resolution: int) -> int:
        """Return the side of the windows at a resolution."""
        return resolution if resolution <= self.enable_full_resolution else _WINDOW


class PixelNorm(nn.Module):
    """Latents [B, D] to root mean square 1."""

    def forward(self, z: Tensor) -> Tensor:
        return z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class ConstantInput(nn.Module):
    """The learned picture [1, C, 4, 4] that every generation starts from."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, width, 4, 4))


class AdaptiveNorm(nn.Module):
    """Tokens [B, N, C], normalised over N, then scaled and shifted by the style [B, D]."""

    def __init__(self, width: int, style_dim: int) -> None:
        super().__init__()
        self.style = EqualizedLinear(style_dim, 2 * width)
        with torch.no_grad():
            self.style.bias[:width] = 1

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.style(style).unsqueeze(1).chunk(2, dim=-1)
        normalised = F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
        return scale * normalised + shift


class WindowBias(nn.Module):
    """What attention between two tokens of a window gains by their relative position, per head."""

    def __init__(self, window: int, heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offsets = places[:, None] - places[None] + window - 1
        index = offsets[..., 0] * (2 * window - 1) + offsets[..., 1]
        self.register_buffer("relative_position_index", index)

    def forward(self) -> Tensor:
        """Return [heads, N, N]."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Double attention and MLP on tokens [B, R * R, C] with the style [B, D]."""

    def __init__(self, width: int, resolution: int, window: int, style_dim: int) -> None:
        super().__init__()
        self.resolution, self.window = resolution, window
        self.shift = window // 2 if window < resolution else 0
        self.half_heads = max(width // 32, 4) // 2
        self.norm1 = AdaptiveNorm(width, style_dim)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attn = nn.ModuleList(WindowBias(window, self.half_heads) for _ in range(2))
        self.norm2 = AdaptiveNorm(width, style_dim)
        self.mlp = Mlp(width)
        mask = _shifted_mask(resolution, window, self.shift) if self.shift else None
        self.register_buffer("attn_mask2", mask)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        grid = self.qkv(self.norm1(x, style)).unflatten(1, (self.resolution, self.resolution))
        # B, R, R, (query, key, value), (plain, shifted), C / 2
        plain, shifted = grid.unflatten(-1, (3, 2, -1)).unbind(-2)
        both = torch.cat([self._plain(plain), self._shifted(shifted)], dim=-1)
        x = x + self.proj(both.flatten(1, 2))
        return x + self.mlp(self.norm2(x, style))

    def _plain(self, qkv: Tensor) -> Tensor:
        return self._attended(qkv, self.attn[0]())

    def _shifted(self, qkv: Tensor) -> Tensor:
        bias = self.attn[1]()
        if not self.shift:
            return self._attended(qkv, bias)
        rolled = qkv.roll((-self.shift, -self.shift), (1, 2))
        mixed = self._attended(rolled, bias + self.attn_mask2.unsqueeze(1))
        return mixed.roll((self.shift, self.shift), (1, 2))

    def _attended(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """Attend within windows of [B, R, R, 3, C / 2], with [heads, N, N] or [windows, heads, N, N] added."""
        window, across = self.window, self.resolution // self.window
        x = qkv.view(
            -1, across, window, across, window, 3, self.half_heads, qkv.shape[-1] // self.half_heads
        )
        x = x.permute(5, 0, 1, 3, 6, 2, 4, 7)  # 3, B, down, across, heads, y, x, head dim
        q, k, v = x.flatten(5, 6).flatten(2, 3)  # each B, windows, heads, N, head dim
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        mixed = mixed.unflatten(3, (window, window)).unflatten(1, (across, across))
        mixed = mixed.permute(0, 1, 4, 2, 5, 3, 6)  # B, down, y, across, x, heads, head dim
        return mixed.reshape(len(qkv), self.resolution, self.resolution, -1)


def _shifted_mask(resolution: int, window: int, shift: int) -> Tensor:
    """Return [windows, N, N]: -100 between tokens of a shifted window that rolling brought together, else 0."""
    line = torch.zeros(resolution)
    line[-window:] = 1
    line[-shift:] = 2
    regions = 3 * line[:, None] + line
    across = resolution // window
    regions = regions.view(across, window, across, window).transpose(1, 2).reshape(-1, window**2)
    apart = regions[:, None] != regions[:, :, None]
    return torch.zeros(apart.shape).masked_fill(apart, _BLOCKED)


def position_table(width: int, resolution: int) -> Tensor:
    """Return the sinusoidal positions [R * R, C]: columns in the first half of the channels, rows in the second.

    Each half is [sin | cos]; positions count from 1.
    """
    count = width // 4
    frequencies = torch.exp(-torch.arange(count) * (math.log(10000) / (count - 1)))
    angles = torch.arange(1, resolution + 1)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = line.expand(resolution, -1, -1)
    return torch.cat([columns, columns.transpose(0, 1)], dim=-1).flatten(0, 1)


class Upsample(nn.Module):
    """Tokens [B, R * R, C] to [B, 4 * R * R, D], with their new positions added."""

    def __init__(self, inner: int, outer: int, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.norm = nn.LayerNorm(inner)
        self.reduction = nn.Linear(inner, outer, bias=False)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.register_buffer("positions", position_table(outer, 2 * resolution), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(_picture(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.reduction(self.norm(x.flatten(2).transpose(1, 2))) + self.alpha * self.positions


def _picture(tokens: Tensor) -> Tensor:
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


class Stage(nn.Module):
    """The blocks of one resolution; all stages but the last upsample after them."""

    def __init__(self, config: StyleSwinConfig, resolution: int) -> None:
        super().__init__()
        width = config.width(resolution)
        self.blocks = nn.ModuleList(
            Block(width, resolution, config.window(resolution), config.style_dim)
            for _ in range(_BLOCKS)
        )
        self.upsample = (
            Upsample(width, config.width(2 * resolution), resolution)
            if resolution < config.size
            else None
        )

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        for block, style in zip(self.blocks, styles.unbind(1), strict=True):
            x = block(x, style)
        return x if self.upsample is None else self.upsample(x)


class Filter(nn.Module):
    """Twice the size by StyleGAN2's filter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel(gain=4))

    def forward(self, x: Tensor) -> Tensor:
        return upsampled(x, self.kernel)


class ToRGB(nn.Module):
    """Adds what a stage's tokens say to the picture so far, which it brings to their size."""

    def __init__(self, width: int, *, upsample: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 3, 1)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.upsample = Filter() if upsample else None

    def forward(self, tokens: Tensor, picture: Tensor | None) -> Tensor:
        added = self.conv(_picture(tokens)) + self.bias
        if picture is None:
            return added
        return added + (picture if self.upsample is None else self.upsample(picture))


class StyleSwin(nn.Module):
    """Latents z [B, D] to RGB pictures."""

    def __init__(self, config: StyleSwinConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.style_dim
        self.style = nn.Sequential(
            PixelNorm(),
            *(
                EqualizedLinear(dim, dim, lr_multiplier=config.lr_mlp, activated=True)
                for _ in range(config.n_mlp)
            ),
        )
        resolutions = config.resolutions
        self.input = ConstantInput(config.width(resolutions[0]))
        self.layers = nn.ModuleList(Stage(config, resolution) for resolution in resolutions)
        self.to_rgbs = nn.ModuleList(
            ToRGB(config.width(min(2 * resolution, config.size)), upsample=resolution < config.size)
            for resolution in resolutions
        )

    def mean_style(self, seed: int = 0, samples: int = 4096) -> Tensor:
        """Return the style [1, D] that truncation goes towards: an average over random latents."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(samples, self.config.style_dim, generator=generator)
        return self.style(z.to(self.input.input)).mean(0, keepdim=True)

    def synthesis(self, styles: Tensor) -> Tensor:
        """Return pictures [B, 3, size, size], normalised as ImageNet's, of styles [B, D].

        To mix styles, give one for each block, coarse to fine: [B, 2 * stages, D].
        """
        if styles.dim() == 2:
            styles = styles.unsqueeze(1).expand(-1, _BLOCKS * len(self.layers), -1)
        x = self.input.input.flatten(2).transpose(1, 2).expand(len(styles), -1, -1)
        picture = None
        for stage, to_rgb, own in zip(
            self.layers, self.to_rgbs, styles.split(_BLOCKS, dim=1), strict=True
        ):
            x = stage(x, own)
            picture = to_rgb(x, picture)
        assert picture is not None
        return picture

    def forward(self, z: Tensor, truncation: float = 1.0, mean: Tensor | None = None) -> Tensor:
        """Return pictures [B, 3, size, size], normalised as ImageNet's.

        A `truncation` below 1 draws styles towards `mean` [1, D]: less variety, fewer failures.
        Raises ValueError where that is missing.
        """
        styles = self.style(z)
        if truncation != 1:
            if mean is None:
                raise ValueError("truncation needs the mean style")
            styles = mean + truncation * (styles - mean)
        return self.synthesis(styles)


def pixels(pictures: Tensor) -> Tensor:
    """Undo ImageNet's normalisation of [B, 3, H, W], to [0, 1]."""
    mean, std = (
        pictures.new_tensor(values).view(3, 1, 1)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return (pictures * std + mean).clamp(0, 1)


def released_state(checkpoint: Mapping[str, Any]) -> StateDict:
    """Return the averaged generator (`g_ema`) of a released checkpoint, or of a bare state dict.

    A buffer that the authors never set (`_float_tensor`) is left out.
    """
    state = unwrapped(checkpoint.get("g_ema", checkpoint))
    return {k: v for k, v in state.items() if not k.endswith("._float_tensor")}
