"""The VQGAN whose codes ENAT writes: MaskGIT's (Chang et al. 2022), as ported for MAGE.

https://arxiv.org/abs/2202.04200. Convolutions only, 16 pixels a code. What differs from taming's VQGAN:

* no attention, no convolutions around the codebook, no further block a level in the decoder;
* convolutions of the residual blocks and the encoder's first have no bias;
* where a block changes the width, its 1x1 shortcut works on the block's own output, so that its input
  does not get through. The weights were trained with that, so it must stay.

Pictures are in [0, 1] on both sides. Names of the state dict are those of `vqgan_jax_strongaug.ckpt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import StateDict, unwrapped


@dataclass(frozen=True)
class TokenizerConfig:
    """Configuration under the authors' argument names; the defaults are the released one's."""

    embed_dim: int = 256
    n_embed: int = 1024
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 256
    in_channels: int = 3
    out_ch: int = 3

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.ch * multiplier for multiplier in self.ch_mult)

    @property
    def patch(self) -> int:
        """Pixels a code, in each direction."""
        return 2 ** (len(self.ch_mult) - 1)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two convolutions [B, C, H, W] to [B, D, H, W]; the input is added only where D is C."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.norm1 = _norm(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
        self.norm2 = _norm(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(outer, outer, 1, bias=False) if inner != outer else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class Upsample(nn.Module):
    """Twice the size by repeating pixels, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Level(nn.Module):
    """Residual blocks at one resolution; `upsample` follows them in the decoder."""

    def __init__(self, inner: int, outer: int, blocks: int, *, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(inner if i == 0 else outer, outer) for i in range(blocks)
        )
        self.upsample = Upsample(outer) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """Two residual blocks at the codes' resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width)
        self.block_2 = ResidualBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] to latents [B, C, H / patch, W / patch]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Level(inner, outer, config.num_res_blocks)
            for inner, outer in zip((config.ch, *widths[:-1]), widths, strict=True)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if i else x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents [B, C, h, w] to pictures [B, 3, h * patch, w * patch], not clamped."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(inner, outer, config.num_res_blocks, upsample=i > 0)
            for i, (inner, outer) in enumerate(zip((*widths[1:], widths[-1]), widths, strict=True))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    """Vectors by code, and the nearest code by vector."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)

    def nearest(self, latents: Tensor) -> Tensor:
        """Return codes [B, h, w] of latents [B, C, h, w]."""
        vectors = latents.permute(0, 2, 3, 1)
        words = self.embedding.weight
        # The vectors' own squared length changes no order.
        return (words.square().sum(1) - 2 * vectors @ words.T).argmin(-1)

    def forward(self, codes: Tensor) -> Tensor:
        """Return latents [B, C, h, w] of codes [B, h, w]."""
        return self.embedding(codes).permute(0, 3, 1, 2)


class Tokenizer(nn.Module):
    """Pictures to codes and back. Sides must be multiples of `config.patch`."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        if config.z_channels != config.embed_dim:
            raise ValueError(
                f"latents of {config.z_channels} channels have no nearest code of {config.embed_dim}"
            )
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config.n_embed, config.embed_dim)

    def encode(self, pictures: Tensor) -> Tensor:
        """Return codes [B, H / patch, W / patch] of RGB pictures [B, 3, H, W] in [0, 1]."""
        return self.quantize.nearest(self.encoder(pictures))

    def decode(self, codes: Tensor) -> Tensor:
        """Return RGB pictures [B, 3, h * patch, w * patch] in [0, 1] of codes [B, h, w]."""
        return self.decoder(self.quantize(codes)).clamp(0, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the reconstruction of pictures."""
        return self.decode(self.encode(pictures))


def released_state(checkpoint: Mapping[str, Any]) -> StateDict:
    """Return the state dict of `Tokenizer` in a released checkpoint, without what only training needs."""
    parts = ("encoder.", "decoder.", "quantize.")
    return {k: v for k, v in unwrapped(checkpoint).items() if k.startswith(parts)}
