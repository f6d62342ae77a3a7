"""MAGVIT-v2's lookup-free quantiser for pictures, in its open form (https://arxiv.org/abs/2310.05737, section 3.1).

A token is the signs of 18 channels, read as a number: 2^18 codes without a table of vectors. Google published neither code nor
weights; the network is Open-MAGVIT2's (https://arxiv.org/abs/2409.04410; TencentARC/SEED-Voken, Apache-2.0),
with the state-dict names of its `VQModel` and public weights.

The decoder is reminded of the code before each of its levels: a group norm without parameters is
scaled and shifted by the code's deviation and mean over the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import StateDict, unwrapped

_EPS = 1e-6


@dataclass(frozen=True)
class LfqConfig:
    """Sizes under the authors' names. `z_channels` is the number of bits of a token."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 4
    z_channels: int = 18
    in_channels: int = 3
    out_ch: int = 3

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.ch * multiplier for multiplier in self.ch_mult)

    @property
    def stride(self) -> int:
        """Rows and columns of pixels to a token."""
        return 2 ** (len(self.ch_mult) - 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=_EPS)


def _conv(
    inputs: int, outputs: int, size: int = 3, *, stride: int = 1, bias: bool = True
) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=bias)


class ResBlock(nn.Module):
    """Two convolutions behind group norms, added to the input [B, C, H, W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.norm2 = _norm(outputs)
        self.conv1 = _conv(inputs, outputs, bias=False)
        self.conv2 = _conv(outputs, outputs, bias=False)
        if inputs != outputs:
            self.nin_shortcut = _conv(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


def _blocks(inputs: int, outputs: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(outputs if i else inputs, outputs) for i in range(count)))


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] in -1..1 to [B, z_channels, h, w]."""

    def __init__(self, config: LfqConfig) -> None:
        super().__init__()
        width, count = config.ch, config.num_res_blocks
        self.conv_in = _conv(config.in_channels, width, bias=False)
        self.down = nn.ModuleList()
        for level, outputs in enumerate(config.widths):
            parts = {"block": _blocks(width, outputs, count)}
            width = outputs
            if level < len(config.widths) - 1:
                parts["downsample"] = _conv(width, width, stride=2)
            self.down.append(nn.ModuleDict(parts))
        self.mid_block = _blocks(width, width, count)
        self.norm_out = _norm(width)
        self.conv_out = _conv(width, config.z_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for level in self.down:
            for part in level.values():
                x = part(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class AdaptiveGroupNorm(nn.Module):
    """Group norm of x [B, C, H, W], scaled and shifted by statistics of the code [B, z_channels, h, w]."""

    def __init__(self, code_channels: int, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(code_channels, channels)
        self.beta = nn.Linear(code_channels, channels)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        places = code.flatten(2)
        scale = self.gamma((places.var(-1) + _EPS).sqrt())[..., None, None]
        shift = self.beta(places.mean(-1))[..., None, None]
        return F.group_norm(x, 32, eps=_EPS) * scale + shift


class Upsample(nn.Module):
    """Twice the size: each place's four channel groups become its 2x2 places.

    The groups stand outermost among the channels, unlike those of `torch.nn.PixelShuffle`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        groups = self.conv1(x).unflatten(1, (2, 2, -1))  # B, row, column, C, H, W
        return groups.permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3)


class Decoder(nn.Module):
    """Codes [B, z_channels, h, w] of -1 and 1 to pictures [B, 3, H, W], not limited to -1..1."""

    def __init__(self, config: LfqConfig) -> None:
        super().__init__()
        count = config.num_res_blocks
        width = config.widths[-1]
        self.conv_in = _conv(config.z_channels, width)
        self.mid_block = _blocks(width, width, count)
        self.up = nn.ModuleList()
        self.adaptive = nn.ModuleList()
        for level, outputs in reversed(list(enumerate(config.widths))):
            self.adaptive.insert(0, AdaptiveGroupNorm(config.z_channels, width))
            parts: dict[str, nn.Module] = {"block": _blocks(width, outputs, count)}
            width = outputs
            if level > 0:
                parts["upsample"] = Upsample(width)
            self.up.insert(0, nn.ModuleDict(parts))
        self.norm_out = _norm(width)
        self.conv_out = _conv(width, config.out_ch)

    def forward(self, code: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(code))
        for level, adapt in zip(reversed(self.up), reversed(self.adaptive), strict=True):
            x = adapt(x, code)
            for part in level.values():
                x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def signs(latent: Tensor) -> Tensor:
    """Return the code of an encoder's output: 1 where it is positive, else -1."""
    return torch.where(latent > 0, 1.0, -1.0).to(latent.dtype)


def tokens_of(code: Tensor) -> Tensor:
    """Return the tokens [B, h, w], int64, of codes [B, bits, h, w]; the first channel is the lowest bit."""
    bits = torch.arange(code.shape[1], device=code.device).view(-1, 1, 1)
    return ((code > 0).long() << bits).sum(1)


def code_of(tokens: Tensor, bits: int) -> Tensor:
    """Return the codes [B, bits, h, w], float32, of tokens [B, h, w] in 0..2^bits - 1."""
    shifts = torch.arange(bits, device=tokens.device).view(-1, 1, 1)
    return ((tokens[:, None] >> shifts) & 1).float() * 2 - 1


class LfqTokenizer(nn.Module):
    """Pictures [B, 3, H, W] with values in -1..1 to tokens [B, h, w] and back."""

    def __init__(self, config: LfqConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, image: Tensor) -> Tensor:
        return tokens_of(self.encoder(image))

    def decode(self, tokens: Tensor) -> Tensor:
        """Return pixels as the network gives them, not limited to -1..1."""
        return self.decoder(code_of(tokens, self.config.z_channels))

    def forward(self, image: Tensor) -> Tensor:
        """Return the picture after encoding and decoding, within -1..1."""
        return self.decode(self.encode(image)).clamp(-1, 1)


def averaged(checkpoint: Mapping[str, Any]) -> StateDict:
    """Return the tokenizer's weights in a published checkpoint: the running averages where it has them.

    A checkpoint holds each weight a second time as `model_ema.` and its name without dots, and the
    networks of the losses, which are left out.
    """
    state = unwrapped(checkpoint)
    own = [name for name in state if name.startswith(("encoder.", "decoder."))]
    return {name: state.get(f"model_ema.{name.replace('.', '')}", state[name]) for name in own}
