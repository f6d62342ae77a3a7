"""The networks of SiT: two task tokens (2021), and one class token with heads beside it (2022)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from timm.layers import PatchEmbed
from torch import nn

from models.layers.dino_vit import NORM_EPS, DinoViT, blocks

Head = Literal["pretraining", "classes"]


class TwoTokenSiT(nn.Module):
    """The network of 2021: a rotation token and a contrastive token in front of the patches.

    Maps pictures [B, 3, image_size, image_size] to all tokens after the final norm; with the head
    `pretraining` to (rotation logits [B, 4], contrastive vector [B, out_dim], restored picture),
    with `classes` to logits, the mean of those of both tokens.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        head: Head | None = None,
        out_dim: int = 512,
        num_classes: int = 0,
        representation_size: int | None = None,
    ) -> None:
        super().__init__()
        self.side = image_size // patch_size
        self.head = head
        self.rot_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.contrastive_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 2 + self.side**2, dim))
        self.patch_embed = PatchEmbed(image_size, patch_size, embed_dim=dim)
        self.blocks = blocks(dim, depth, heads)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        for parameter in (self.rot_token, self.contrastive_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        width = dim
        if head == "classes" and representation_size is not None:
            width = representation_size
            self.pre_logits_rot = _before_logits(dim, width)
            self.pre_logits_contrastive = _before_logits(dim, width)
        if head is not None:
            pretraining = head == "pretraining"
            self.rot_head = nn.Linear(width, 4 if pretraining else num_classes)
            self.contrastive_head = nn.Linear(width, out_dim if pretraining else num_classes)
        if head == "pretraining":
            self.convTrans = nn.ConvTranspose2d(dim, 3, patch_size, stride=patch_size)

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        """Return [B, 2 + patches, dim]: the rotation token, the contrastive token, the patches."""
        patches = self.patch_embed(image)
        first = torch.cat((self.rot_token, self.contrastive_token), dim=1)
        x = torch.cat((first.expand(patches.shape[0], -1, -1), patches), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        tokens = self.tokens(image)
        if self.head is None:
            return tokens
        rotation, contrastive = tokens[:, 0], tokens[:, 1]
        if hasattr(self, "pre_logits_rot"):
            rotation = self.pre_logits_rot(rotation)
            contrastive = self.pre_logits_contrastive(contrastive)
        rotation, contrastive = self.rot_head(rotation), self.contrastive_head(contrastive)
        if self.head == "classes":
            return (rotation + contrastive) / 2
        grid = tokens[:, 2:].transpose(1, 2).unflatten(2, (self.side, self.side))
        return rotation, contrastive, self.convTrans(grid)

    def represent(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the contrastive token [B, dim] and the map of patch tokens [B, h, w, dim]."""
        tokens = self.tokens(image)
        return tokens[:, 1], tokens[:, 2:].unflatten(1, (self.side, self.side))


class SiTClassifier(DinoViT):
    """The network of 2022 with its fine-tuning head: class token beside the mean of the patches to logits."""

    def __init__(
        self,
        *,
        table_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        num_classes: int,
    ) -> None:
        super().__init__(
            table_size=table_size, patch_size=patch_size, dim=dim, depth=depth, heads=heads
        )
        self.head = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, num_classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens(image)
        return self.head(torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), dim=1))


class SiTPretraining(nn.Module):
    """The network of 2022 as it is pretrained: (contrastive vector [B, out_dim], restored picture)."""

    def __init__(self, backbone: DinoViT, *, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        dim = backbone.pos_embed.shape[-1]
        self.backbone = backbone
        self.head = ContrastiveHead(dim, hidden_dim, out_dim)
        self.head_recons = RestoringHead(dim, backbone.patch_size)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vector, features = self.backbone.represent(image)
        return self.head(vector), self.head_recons(features)

    def represent(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the class token [B, dim] and the map of patch tokens [B, h, w, dim]."""
        return self.backbone.represent(image)


class ContrastiveHead(nn.Module):
    """From the class token to the space in which views of one picture shall lie together."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, out_dim),
            nn.BatchNorm1d(out_dim, affine=False),
        )

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        return self.mlp(token)


class RestoringHead(nn.Module):
    """From patch tokens [B, h, w, dim] to the normalised picture without its corruption."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(dim, dim), nn.GELU())))
        self.convTrans = nn.ConvTranspose2d(dim, 3, patch_size, stride=patch_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.convTrans(self.mlp(features).permute(0, 3, 1, 2))


def _before_logits(dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(fc=nn.Linear(dim, width), act=nn.Tanh()))
