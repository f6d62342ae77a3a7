"""LaVin-DiT's spatio-temporal VAE (section 3.2): diffusers' `AutoencoderKLCogVideoX` with the clip in one piece.

diffusers codes a clip in chunks and doubles an even number of latent frames; here the first frame always stands
for itself, so that 4 n + 1 frames are n + 1 latent ones and come back as many. State names are the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX

LATENT_MEAN = 0.032470703125
LATENT_SCALE = 1.08936170213


class Upsample(nn.Module):
    """Twice the rows and columns of [B, C, T, H, W]; with `in_time` also twice the frames after the first."""

    def __init__(self, conv: nn.Conv2d, in_time: bool) -> None:
        super().__init__()
        self.conv = conv
        self.in_time = in_time

    def forward(self, x: Tensor) -> Tensor:
        if self.in_time and x.shape[2] > 1:
            rest = F.interpolate(x[:, :, 1:], scale_factor=(2.0, 1.0, 1.0))
            x = torch.cat([x[:, :, :1], rest], dim=2)
        batch = len(x)
        frames = F.interpolate(x.transpose(1, 2).flatten(0, 1), scale_factor=2.0)
        return self.conv(frames).unflatten(0, (batch, -1)).transpose(1, 2)


class SpatioTemporalVAE(nn.Module):
    """Codes clips of 4 n + 1 frames, an eighth as high and wide; a picture is a clip of one frame.

    `block_out_channels` are the levels' widths and `layers_per_block` the residual blocks a level (the decoder has
    one more); time halves in the first two levels.
    """

    def __init__(
        self,
        block_out_channels: Sequence[int] = (128, 256, 256, 512),
        layers_per_block: int = 3,
        latent_channels: int = 16,
    ) -> None:
        super().__init__()
        vae = _cogvideox(tuple(block_out_channels), layers_per_block, latent_channels)
        for block in vae.decoder.up_blocks:
            if block.upsamplers is not None:
                (up,) = block.upsamplers
                block.upsamplers[0] = Upsample(up.conv, up.compress_time)
        self.encoder, self.decoder = vae.encoder, vae.decoder

    def moments(self, clip: Tensor) -> Tensor:
        """Return means and log-variances [B, 2 C, t, h, w], stacked, of a clip [B, 3, T, H, W] in -1..1."""
        moments, _ = self.encoder(clip)
        return moments

    def encode(self, clip: Tensor) -> Tensor:
        """Return the standardised latents [B, C, t, h, w] of a clip [B, 3, T, H, W] in -1..1: the posterior's means.

        The authors draw from the posterior, which would make the same request's answers differ.
        """
        mean, _ = self.moments(clip).chunk(2, dim=1)
        return (mean - LATENT_MEAN) * LATENT_SCALE

    def decode(self, latents: Tensor) -> Tensor:
        """Return the clip [B, 3, T, H, W] in about -1..1 of standardised latents [B, C, t, h, w]."""
        return self.decoded(latents / LATENT_SCALE + LATENT_MEAN)

    def decoded(self, latents: Tensor) -> Tensor:
        """Return the clip of latents as the encoder's means are."""
        clip, _ = self.decoder(latents)
        return clip


def _cogvideox(channels: tuple[int, ...], layers: int, latents: int) -> AutoencoderKLCogVideoX:
    # Takes seconds to import, which only those who build it should spend.
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * len(channels),
        up_block_types=("CogVideoXUpBlock3D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=layers,
        latent_channels=latents,
    )
