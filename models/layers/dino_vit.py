"""The vision transformer of DINO's code, which SiT and TOV-VICReg took over with its names.

A plain ViT (class token, learned positions, pre-norm blocks), whose position table is resized to the
picture's grid at every call, by a scale factor of (grid + 0.1) / table. The bicubic samples lie where
that factor puts them, so that resizing to the size itself gives other numbers.
"""

from __future__ import annotations

from functools import partial

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import nn

NORM_EPS = 1e-6


def blocks(dim: int, depth: int, heads: int) -> nn.ModuleList:
    """Return `depth` pre-norm blocks: qkv with bias, exact GELU, a four times wider MLP."""
    norm = partial(nn.LayerNorm, eps=NORM_EPS)
    return nn.ModuleList(
        Block(dim, heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm)  # type: ignore[arg-type]
        for _ in range(depth)
    )


class DinoViT(nn.Module):
    """Maps pictures [B, 3, H, W] of any size to all tokens after the final norm, [B, 1 + h * w, dim].

    The grid has h = H // patch_size rows; pixels beyond the last whole patch are not looked at.
    `table_size` is the side in pixels of the picture that the position table is made for.
    """

    def __init__(self, *, table_size: int, patch_size: int, dim: int, depth: int, heads: int):
        super().__init__()
        self.patch_size = patch_size
        self.table_side = table_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.table_side**2, dim))
        self.patch_embed = PatchEmbed(img_size=None, patch_size=patch_size, embed_dim=dim)
        self.blocks = blocks(dim, depth, heads)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def grid(self, image: torch.Tensor) -> tuple[int, int]:
        """Return how many rows and columns of patches a picture [B, 3, H, W] has."""
        height, width = image.shape[-2:]
        return height // self.patch_size, width // self.patch_size

    def positions(self, height: int, width: int) -> torch.Tensor:
        """Return the table [1, 1 + h * w, dim] for a picture's pixels; the class's entry stays as it is."""
        side = self.table_side
        rows, columns = height // self.patch_size, width // self.patch_size
        # The authors leave the table alone for squares only.
        if rows == columns == side and height == width:
            return self.pos_embed
        table = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / side, (columns + 0.1) / side)
        resized = nn.functional.interpolate(table, scale_factor=scale, mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)), dim=1)

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        """Return all tokens after the final norm, [B, 1 + h * w, dim], the class token first."""
        patches = self.patch_embed(image)  # B, h * w, dim
        x = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        x = x + self.positions(*image.shape[-2:])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.tokens(image)

    def represent(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the class token [B, dim] and the map of patch tokens [B, h, w, dim]."""
        tokens = self.tokens(image)
        return tokens[:, 0], tokens[:, 1:].unflatten(1, self.grid(image))
