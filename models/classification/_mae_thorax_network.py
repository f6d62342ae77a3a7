"""The masked autoencoder that the X-ray transformers are pre-trained as.

Paper: https://arxiv.org/abs/2210.12843; `mae_thorax.py` says what is particular to it. Modules have the names of the
authors' state dict; blocks and patch embedding are timm's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import nn

LayerNorm = partial(nn.LayerNorm, eps=1e-6)

_SHARED = {"image_size": 224, "patch_size": 16, "depth": 12, "decoder_dim": 512}
# Arguments of `MaskedAutoencoder` for each pre-training that the authors published.
PRETRAINING: dict[str, dict[str, Any]] = {
    "vit-small": _SHARED | {"dim": 384, "heads": 6, "decoder_depth": 2},
    "vit-base": _SHARED | {"dim": 768, "heads": 12, "decoder_depth": 8},
}
# Share of the patches hidden in training on X-rays; 0.75 is usual for photographs.
HIDDEN = 0.9


@dataclass(frozen=True)
class Masking:
    """Which patches the encoder sees.

    `kept` [B, K]: indices of the visible patches, in the order in which the encoder takes them. `restore` [B, N]: place
    of every patch in the sequence of the visible ones followed by the hidden ones. `hidden` [B, N]: float, 1 for a
    hidden patch, 0 for a visible one.
    """

    kept: torch.Tensor
    restore: torch.Tensor
    hidden: torch.Tensor


@dataclass(frozen=True)
class Reconstruction:
    """`patches` [B, N, patch * patch * 3]: predicted pixels; `latent` [B, 1 + K, dim]: what the encoder made of the
    visible patches, the class token first."""

    patches: torch.Tensor
    latent: torch.Tensor
    masking: Masking


def masking(noise: torch.Tensor, share: float = HIDDEN) -> Masking:
    """Hide `share` of the patches, those with the highest noise [B, N]; the number kept is rounded down."""
    count = int(noise.shape[1] * (1 - share))
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    return Masking(order[:, :count], restore, (restore >= count).to(noise.dtype))


def to_patches(image: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cut pictures [B, C, H, W] into [B, N, patch * patch * C], each patch in the order row, column, channel."""
    batch, channels, height, width = image.shape
    rows, columns = height // patch_size, width // patch_size
    cut = image.reshape(batch, channels, rows, patch_size, columns, patch_size)
    cut = cut.permute(0, 2, 4, 3, 5, 1)  # B, rows, columns, patch, patch, C
    return cut.reshape(batch, rows * columns, -1)


def to_picture(patches: torch.Tensor, patch_size: int, grid: tuple[int, int]) -> torch.Tensor:
    """Put patches together again, `grid` (rows, columns) of them: the reverse of `to_patches`."""
    rows, columns = grid
    cut = patches.reshape(patches.shape[0], rows, columns, patch_size, patch_size, -1)
    cut = cut.permute(0, 5, 1, 3, 2, 4)  # B, C, rows, patch, columns, patch
    return cut.reshape(patches.shape[0], -1, rows * patch_size, columns * patch_size)


def position_table(dim: int, grid: tuple[int, int]) -> torch.Tensor:
    """Return sines and cosines of column and row, a quarter of the channels each: [1, 1 + rows * columns, dim].

    The first entry, the class token's, is zero.
    """
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    rates = 10_000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = [place.reshape(-1, 1) * rates for place in (column, row)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat((torch.zeros(1, dim), table.float()))[None]


def reconstruction_loss(
    image: torch.Tensor,
    patches: torch.Tensor,
    hidden: torch.Tensor,
    patch_size: int,
    *,
    normalised: bool = False,
) -> torch.Tensor:
    """Return the squared error per pixel [] of predicted `patches`, over the hidden ones only.

    `normalised`: what is to be predicted are the pixels less their patch's mean, over its deviation.
    """
    target = to_patches(image, patch_size)
    if normalised:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
    error = (patches - target).square().mean(dim=-1)  # B, N
    return (error * hidden).sum() / hidden.sum()


class MaskedAutoencoder(nn.Module):
    """A vision transformer that sees few patches of a picture, and a small one that predicts the others.

    Takes pictures [B, 3, `image_size`, `image_size`].
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        decoder_dim: int,
        decoder_depth: int,
        decoder_heads: int = 16,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.patch_embed = PatchEmbed(image_size, patch_size, embed_dim=dim)
        self.grid: tuple[int, int] = self.patch_embed.grid_size
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_embed = nn.Parameter(position_table(dim, self.grid), requires_grad=False)
        self.blocks = _blocks(depth, dim, heads, mlp_ratio)
        self.norm = LayerNorm(dim)

        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, decoder_dim) * 0.02)
        self.decoder_pos_embed = nn.Parameter(
            position_table(decoder_dim, self.grid), requires_grad=False
        )
        self.decoder_blocks = _blocks(decoder_depth, decoder_dim, decoder_heads, mlp_ratio)
        self.decoder_norm = LayerNorm(decoder_dim)
        self.decoder_pred = nn.Linear(decoder_dim, patch_size**2 * 3)

    def encode(self, image: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Return normalised tokens [B, 1 + K, dim], the class token first; without `kept` [B, K] all patches."""
        x = self.patch_embed(image) + self.pos_embed[:, 1:]
        if kept is not None:
            x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return self.norm(self.blocks(torch.cat((class_token, x), dim=1)))

    def decode(self, latent: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
        """Predict the pixels of all patches [B, N, patch * patch * 3] from the visible ones' tokens."""
        x = self.decoder_embed(latent)
        class_token, seen = x[:, :1], x[:, 1:]
        unseen = self.mask_token.expand(x.shape[0], restore.shape[1] - seen.shape[1], -1)
        patches = torch.cat((seen, unseen), dim=1)
        patches = patches.gather(1, restore[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat((class_token, patches), dim=1) + self.decoder_pos_embed
        return self.decoder_pred(self.decoder_norm(self.decoder_blocks(x)))[:, 1:]

    def forward(
        self, image: torch.Tensor, noise: torch.Tensor | None = None, share: float = HIDDEN
    ) -> Reconstruction:
        """Hide `share` of the patches, chosen by `noise` [B, N] or by chance, and predict all of them."""
        if noise is None:
            noise = torch.rand(image.shape[0], self.patch_embed.num_patches, device=image.device)
        chosen = masking(noise, share)
        latent = self.encode(image, chosen.kept)
        return Reconstruction(self.decode(latent, chosen.restore), latent, chosen)

    def picture(self, patches: torch.Tensor) -> torch.Tensor:
        """Put predicted patches together to pictures [B, 3, H, W]."""
        return to_picture(patches, self.patch_size, self.grid)


def _blocks(depth: int, dim: int, heads: int, mlp_ratio: float) -> nn.Sequential:
    return nn.Sequential(
        *(Block(dim, heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth))
    )
