"""UniFormer's video networks: the image networks' blocks with convolutions over time as well.

Modules carry the names of the authors' checkpoints. Maps are [B, C, T, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import Attention
from torch import nn

from models.classification._uniformer_network import (
    GlobalBlock,
    LocalBlock,
    SelectiveBlock,
    _gain,
    _times,
)


class ClipPatches(nn.Module):
    """Patches of `size` x `size` embedded without overlap, each frame by itself or with its neighbours.

    Maps [B, in_dim, T, H, W] to [B, dim, T', H/size, W/size]. `depth` is the convolution's number of
    frames, 1 or 3, and `every` its step: 2 halves the frames.
    """

    def __init__(self, in_dim: int, dim: int, size: int, depth: int = 1, every: int = 1) -> None:
        super().__init__()
        self.proj = nn.Conv3d(
            in_dim, dim, (depth, size, size), stride=(every, size, size), padding=(depth // 2, 0, 0)
        )
        # Not the 1e-6 of the attention blocks.
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x).movedim(1, -1)).movedim(-1, 1)


class OverlappingClipPatches(nn.Module):
    """Two 3x3x3 convolutions that halve the frames once and their sides twice."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.proj = nn.Sequential(
            nn.Conv3d(in_dim, half, 3, stride=(1, 2, 2), padding=1),
            nn.BatchNorm3d(half),
            nn.GELU(),
            nn.Conv3d(half, dim, 3, stride=2, padding=1),
            nn.BatchNorm3d(dim),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


class PointwiseMlp(nn.Module):
    """Two layers over the channels of [B, dim, T, H, W]."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(dim, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv3d(hidden, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class LocalClipBlock(LocalBlock):
    """Block of the first two stages: positions from a 3x3x3 convolution, tokens mixed by a 5x5x5 one."""

    def __init__(self, dim: int, mlp_ratio: float, scaled: bool = False) -> None:
        nn.Module.__init__(self)
        self.pos_embed = _positions(dim)
        self.norm1 = nn.BatchNorm3d(dim)
        self.conv1 = nn.Conv3d(dim, dim, 1)
        self.attn = nn.Conv3d(dim, dim, 5, padding=2, groups=dim)
        self.conv2 = nn.Conv3d(dim, dim, 1)
        self.norm2 = nn.BatchNorm3d(dim)
        self.mlp = PointwiseMlp(dim, int(dim * mlp_ratio))
        self.gamma_1 = _gain(dim, 1, 1, 1) if scaled else None
        self.gamma_2 = _gain(dim, 1, 1, 1) if scaled else None


class GlobalClipBlock(GlobalBlock):
    """Block of the last two stages: attention over all positions of all frames."""

    def __init__(self, dim: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__(dim, head_dim, mlp_ratio)
        self.pos_embed = _positions(dim)


class SplitClipBlock(GlobalClipBlock):
    """Global block that looks along time first and then within each frame.

    As published, the second step is added to what came before the first.
    """

    def __init__(self, dim: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__(dim, head_dim, mlp_ratio)
        self.t_norm = nn.LayerNorm(dim, eps=1e-6)
        self.t_attn = Attention(dim, num_heads=dim // head_dim, qkv_bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.pos_embed(x)
        tokens = x.flatten(3).permute(0, 2, 3, 1)  # B, T, HW, C
        batch, frames, places, _ = tokens.shape
        along = tokens.transpose(1, 2).flatten(0, 1)  # B HW, T, C
        along = along + self.t_attn(self.t_norm(along))
        within = along.unflatten(0, (batch, places)).transpose(1, 2).flatten(0, 1)  # B T, HW, C
        mixed = tokens.flatten(0, 1) + self.attn(self.norm1(within))
        mixed = mixed.unflatten(0, (batch, frames)).flatten(1, 2)  # B, N, C
        mixed = mixed + self.mlp(self.norm2(mixed))
        return mixed.transpose(1, 2).reshape(x.shape)


class SelectiveClipBlock(SelectiveBlock):
    """Global block that spends its work on the tokens, of all frames, at which the class token looks most.

    `scaled`: each branch has a learned gain per channel.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int,
        mlp_ratio: float,
        keep: float,
        rate: float,
        scaled: bool = False,
    ) -> None:
        super().__init__(dim, head_dim, mlp_ratio, keep, rate)
        self.pos_embed = _positions(dim)
        self.gamma_1 = _gain(dim) if scaled else None
        self.gamma_2 = _gain(dim) if scaled else None

    def _update(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mixed, attention = self.attn(self.norm1(x))
        mixed = _times(self.gamma_1, mixed)
        x = x + mixed
        changed = _times(self.gamma_2, self.mlp(self.norm2(x)))
        return x + changed, mixed + changed, attention


class VideoUniFormer(nn.Module):
    """Two stages of local and two of global blocks. Maps a clip [B, 3, T, H, W] to logits [B, num_classes].

    The first patches halve the frames. `split`: global blocks look along time and within frames by
    turns. `mixing`: also the later patches look at neighbouring frames.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        head_dim: int,
        mlp_ratio: float,
        num_classes: int,
        split: bool = False,
        mixing: bool = False,
    ) -> None:
        super().__init__()
        self.patch_embed1 = ClipPatches(3, dims[0], 4, depth=3, every=2)
        for stage in (2, 3, 4):
            patches = ClipPatches(*dims[stage - 2 : stage], 2, depth=3 if mixing else 1)
            self.add_module(f"patch_embed{stage}", patches)
        late = SplitClipBlock if split else GlobalClipBlock
        for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True), start=1):
            blocks = (
                LocalClipBlock(dim, mlp_ratio) if stage < 3 else late(dim, head_dim, mlp_ratio)
                for _ in range(depth)
            )
            self.add_module(f"blocks{stage}", nn.Sequential(*blocks))
        self.norm = nn.BatchNorm3d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        x = self.blocks1(self.patch_embed1(clip))  # B, dims[0], T/2, H/4, W/4
        x = self.blocks2(self.patch_embed2(x))
        x = self.blocks3(self.patch_embed3(x))
        x = self.blocks4(self.patch_embed4(x))  # B, dims[3], T/2, H/32, W/32
        return self.head(self.norm(x).mean((2, 3, 4)))


class LightVideoUniFormer(nn.Module):
    """UniFormer of clips for mobile devices: only the stem's patches overlap, global blocks select tokens.

    Maps [B, 3, T, H, W] to logits [B, num_classes]. `keep` and `rate`: per stage (the last two), per
    block. `scaled`: every block has gains.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        head_dim: int,
        mlp_ratio: float,
        keep: Sequence[Sequence[float]],
        rate: Sequence[Sequence[float]],
        scaled: bool,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.patch_embed1 = OverlappingClipPatches(3, dims[0])
        for stage in (2, 3, 4):
            self.add_module(f"patch_embed{stage}", ClipPatches(*dims[stage - 2 : stage], 2))
        for stage in (1, 2):
            blocks = (
                LocalClipBlock(dims[stage - 1], mlp_ratio, scaled) for _ in range(depths[stage - 1])
            )
            self.add_module(f"blocks{stage}", nn.Sequential(*blocks))
        self.blocks3, self.blocks4 = (
            nn.ModuleList(
                SelectiveClipBlock(dim, head_dim, mlp_ratio, share, speed, scaled)
                for share, speed in zip(shares, speeds, strict=True)
            )
            for dim, shares, speeds in zip(dims[2:], keep, rate, strict=True)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[2]))
        self.cls_upsample = nn.Linear(dims[2], dims[3])
        self.norm = nn.BatchNorm3d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        x = self.blocks1(self.patch_embed1(clip))
        x = self.patch_embed3(self.blocks2(self.patch_embed2(x)))
        leader = self.cls_token.expand(x.shape[0], -1, -1)
        scores = None
        for block in self.blocks3:
            x, leader, scores = block(x, leader, scores)
        assert scores is not None
        scores = pooled(scores, x.shape[2:])
        x, leader = self.patch_embed4(x), self.cls_upsample(leader)
        for block in self.blocks4:
            x, leader, scores = block(x, leader, scores)
        return self.head(self.norm(x).mean((2, 3, 4)))


def pooled(scores: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Average scores [B, T H W] over 2x2 positions of every frame and keep their sum."""
    smaller = nn.functional.avg_pool3d(scores.unflatten(1, (1, *size)), (1, 2, 2)).flatten(1)
    return smaller * (scores.sum(1, keepdim=True) / smaller.sum(1, keepdim=True))


def _positions(dim: int) -> nn.Conv3d:
    return nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
