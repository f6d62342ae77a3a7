"""MAGVIT's 3D-VQ: video to a grid of discrete tokens and back (https://arxiv.org/abs/2212.05199, section 3.1).

A convolutional auto-encoder over time, height and width whose code is the nearest of a learnt set of vectors:
16 frames of 128x128 pixels become 4x16x16 numbers. As in the published code (google-research/magvit), not
in the paper's drawing: average pooling down, nearest neighbours and a convolution up, zero padding, and a
clip is seen as a whole, backwards in time too.

State-dict names are the parameters' paths in the authors' Flax module; `models/weights/flax.py` converts its checkpoints.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes under the authors' names; `temporal_downsample` says which of the poolings halve time as well."""

    filters: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    temporal_downsample: tuple[bool, ...] = (True, True, False)
    num_res_blocks: int = 2
    embedding_dim: int = 256
    codebook_size: int = 1024

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.channel_multipliers) - 1:
            raise ValueError(
                f"{len(self.channel_multipliers)} levels have {len(self.channel_multipliers) - 1} "
                f"poolings between them, not {len(self.temporal_downsample)}"
            )

    @property
    def stride(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels to a token."""
        side = 2 ** len(self.temporal_downsample)
        return 2 ** sum(self.temporal_downsample), side, side


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def _conv(inputs: int, outputs: int, size: int = 3, *, bias: bool = True) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, size, padding=size // 2, bias=bias)


class ResBlock(nn.Module):
    """Two convolutions behind group norms over the whole clip, added to the input [B, C, T, H, W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.GroupNorm_0 = _norm(inputs)
        self.Conv_0 = _conv(inputs, outputs, bias=False)
        self.GroupNorm_1 = _norm(outputs)
        self.Conv_1 = _conv(outputs, outputs, bias=False)
        if inputs != outputs:
            self.Conv_2 = _conv(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.Conv_0(F.silu(self.GroupNorm_0(x)))
        y = self.Conv_1(F.silu(self.GroupNorm_1(y)))
        return y + (self.Conv_2(x) if hasattr(self, "Conv_2") else x)


_KINDS: dict[type[nn.Module], str] = {nn.Conv3d: "Conv"}


def _numbered(layers: Iterable[nn.Module]) -> nn.Sequential:
    """Chain the layers and name them as Flax does: the kind, and how many of it came before."""
    seen: Counter[str] = Counter()
    named = OrderedDict[str, nn.Module]()
    for layer in layers:
        kind = _KINDS.get(type(layer), type(layer).__name__)
        named[f"{kind}_{seen[kind]}"] = layer
        seen[kind] += 1
    return nn.Sequential(named)


def encoder(config: TokenizerConfig) -> nn.Sequential:
    """Return the network from pixels [B, 3, T, H, W] to vectors [B, embedding_dim, t, h, w]."""
    width = config.filters
    layers: list[nn.Module] = [_conv(3, width, bias=False)]
    for level, multiplier in enumerate(config.channel_multipliers):
        for _ in range(config.num_res_blocks):
            layers.append(ResBlock(width, config.filters * multiplier))
            width = config.filters * multiplier
        if level < len(config.temporal_downsample):
            layers.append(nn.AvgPool3d((2 if config.temporal_downsample[level] else 1, 2, 2)))
    layers += [ResBlock(width, width) for _ in range(config.num_res_blocks)]
    layers += [_norm(width), nn.SiLU(), _conv(width, config.embedding_dim, 1)]
    return _numbered(layers)


def decoder(config: TokenizerConfig) -> nn.Sequential:
    """Return the network from code vectors [B, embedding_dim, t, h, w] to pixels [B, 3, T, H, W]."""
    width = config.filters * config.channel_multipliers[-1]
    layers: list[nn.Module] = [_conv(config.embedding_dim, width)]
    layers += [ResBlock(width, width) for _ in range(config.num_res_blocks)]
    for level in reversed(range(len(config.channel_multipliers))):
        for _ in range(config.num_res_blocks):
            layers.append(ResBlock(width, config.filters * config.channel_multipliers[level]))
            width = config.filters * config.channel_multipliers[level]
        if level > 0:
            frames = 2.0 if config.temporal_downsample[level - 1] else 1.0
            layers += [nn.Upsample(scale_factor=(frames, 2.0, 2.0)), _conv(width, width)]
    layers += [_norm(width), nn.SiLU(), _conv(width, 3)]
    return _numbered(layers)


class Quantizer(nn.Module):
    """The learnt set of vectors [codes, dim]; a vector's token is the number of the nearest one."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(codes, dim))
        nn.init.uniform_(self.codebook, -1 / codes, 1 / codes)

    def forward(self, latent: Tensor) -> Tensor:
        """Return the tokens [B, t, h, w], int64, of vectors [B, dim, t, h, w]; the lowest of equally near ones."""
        vectors = latent.movedim(1, -1)
        # The vectors' own length does not change which code is nearest.
        distance = self.codebook.square().sum(1) - 2 * (vectors @ self.codebook.T)
        return distance.argmin(-1)

    def vectors(self, tokens: Tensor) -> Tensor:
        """Return the code vectors [B, dim, t, h, w] of tokens [B, t, h, w]."""
        return self.codebook[tokens].movedim(-1, 1)


class VideoTokenizer(nn.Module):
    """Clips [B, 3, T, H, W] with values in 0..1 to tokens [B, t, h, w] and back.

    T, H and W are multiples of the configuration's stride.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder(config)
        self.quantizer = Quantizer(config.codebook_size, config.embedding_dim)
        self.decoder = decoder(config)

    def encode(self, video: Tensor) -> Tensor:
        return self.quantizer(self.encoder(video))

    def decode(self, tokens: Tensor) -> Tensor:
        """Return pixels as the network gives them, not limited to 0..1."""
        return self.decoder(self.quantizer.vectors(tokens))

    def forward(self, video: Tensor) -> Tensor:
        """Return the clip after encoding and decoding, within 0..1."""
        return self.decode(self.encode(video)).clamp(0, 1)
