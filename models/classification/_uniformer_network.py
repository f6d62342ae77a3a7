"""UniFormer's image networks: blocks, the plain network and the light one that saves tokens.

Modules carry the names of the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from timm.layers import LayerNorm2d, Mlp
from timm.models.vision_transformer import Attention
from torch import nn

SCALE_AT_START = 1e-6


class Patches(nn.Module):
    """Patches of `size` x `size` embedded without overlap: [B, in_dim, H, W] to [B, dim, H/size, W/size]."""

    def __init__(self, in_dim: int, dim: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, size, stride=size)
        # Not the 1e-6 of the attention blocks.
        self.norm = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x))


class OverlappingPatches(nn.Module):
    """3x3 convolutions with stride 2 through the given widths, GELU between them."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_dim, dim in pairwise(dims):
            layers += [
                nn.Conv2d(in_dim, dim, 3, stride=2, padding=1),
                nn.BatchNorm2d(dim),
                nn.GELU(),
            ]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


class LocalBlock(nn.Module):
    """Block of the first two stages, [B, dim, H, W] to the same: tokens are mixed by a 5x5 depthwise convolution.

    `scaled`: each branch has a learned gain per channel.
    """

    def __init__(self, dim: int, mlp_ratio: float, scaled: bool = False) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), use_conv=True)
        self.gamma_1 = _gain(dim, 1, 1) if scaled else None
        self.gamma_2 = _gain(dim, 1, 1) if scaled else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.pos_embed(x)
        x = x + _times(self.gamma_1, self.conv2(self.attn(self.conv1(self.norm1(x)))))
        return x + _times(self.gamma_2, self.mlp(self.norm2(x)))


class GlobalBlock(nn.Module):
    """Block of the last two stages, [B, dim, H, W] to the same: tokens are mixed by attention over all positions.

    `scaled`: each branch has a learned gain per channel.
    """

    def __init__(self, dim: int, head_dim: int, mlp_ratio: float, scaled: bool = False) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads=dim // head_dim, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.gamma_1 = _gain(dim) if scaled else None
        self.gamma_2 = _gain(dim) if scaled else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.pos_embed(x)
        tokens = x.flatten(2).transpose(1, 2)  # B, N, C
        tokens = tokens + _times(self.gamma_1, self.attn(self.norm1(tokens)))
        tokens = tokens + _times(self.gamma_2, self.mlp(self.norm2(tokens)))
        return tokens.transpose(1, 2).reshape(x.shape)


class UniFormer(nn.Module):
    """Two stages of local and two of global blocks. Maps [B, 3, H, W] to logits [B, num_classes].

    `overlapping`: patches overlap, in every stage. `scaled`: the stages (1 to 4) whose blocks have gains.
    `token_labels`: a second classifier looks at every position; half of its highest logit is added
    (networks trained with token labelling).
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        head_dim: int,
        mlp_ratio: float,
        overlapping: bool,
        scaled: Sequence[int],
        token_labels: bool,
        num_classes: int,
    ) -> None:
        super().__init__()
        if overlapping:
            self.patch_embed1: nn.Module = OverlappingPatches(3, dims[0] // 2, dims[0])
        else:
            self.patch_embed1 = Patches(3, dims[0], 4)
        for stage in (2, 3, 4):
            between = dims[stage - 2 : stage]
            patches = OverlappingPatches(*between) if overlapping else Patches(*between, 2)
            self.add_module(f"patch_embed{stage}", patches)
        for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True), start=1):
            gains = stage in scaled
            blocks = (
                LocalBlock(dim, mlp_ratio, gains)
                if stage < 3
                else GlobalBlock(dim, head_dim, mlp_ratio, gains)
                for _ in range(depth)
            )
            self.add_module(f"blocks{stage}", nn.Sequential(*blocks))
        self.norm = nn.BatchNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)
        self.aux_head = nn.Linear(dims[-1], num_classes) if token_labels else None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.blocks1(self.patch_embed1(image))  # B, dims[0], H/4, W/4
        x = self.blocks2(self.patch_embed2(x))
        x = self.blocks3(self.patch_embed3(x))
        x = self.blocks4(self.patch_embed4(x))  # B, dims[3], H/32, W/32
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # B, N, C
        logits = self.head(tokens.mean(1))
        if self.aux_head is not None:
            logits = logits + 0.5 * self.aux_head(tokens).amax(1)
        return logits


class ScoringAttention(nn.Module):
    """Attention that also tells how much the class token, the first one, looks at each of the others."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map [B, N, C] to the same shape and the class token's attention [B, N - 1], mean over heads."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)  # B, heads, N, N
        mixed = (attention @ v).transpose(1, 2).flatten(2)
        return self.proj(mixed), attention[:, :, 0, 1:].float().mean(1)


class SelectiveBlock(nn.Module):
    """Global block that spends its work on the tokens at which the class token looks most.

    The share `keep` of the tokens passes through the block. The others are merged into one, weighted
    by their scores; what the block adds to that one is added to each of them. Scores follow the
    class token's attention at the rate `rate`.
    """

    def __init__(self, dim: int, head_dim: int, mlp_ratio: float, keep: float, rate: float) -> None:
        super().__init__()
        self.keep = keep
        self.rate = rate
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ScoringAttention(dim, dim // head_dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(
        self, x: torch.Tensor, leader: torch.Tensor, scores: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map a map [B, C, H, W], the class token [B, 1, C] and scores [B, H W] to their successors.

        The first block of all gets no scores and must keep all tokens.
        """
        x = x + self.pos_embed(x)
        tokens = x.flatten(2).transpose(1, 2)  # B, N, C
        if self.keep == 1 or scores is None:
            both, _, attention = self._update(torch.cat((leader, tokens), 1))
            leader, tokens = both[:, :1], both[:, 1:]
            scores = attention if scores is None else scores.lerp(attention, self.rate)
        else:
            leader, tokens, scores = self._select(leader, tokens, scores)
        return tokens.transpose(1, 2).reshape(x.shape), leader, scores

    def _select(
        self, leader: torch.Tensor, tokens: torch.Tensor, scores: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        kept = int(tokens.shape[1] * self.keep)
        order = scores.argsort(1, descending=True)
        scores = scores.gather(1, order)
        tokens = tokens.gather(1, order.unsqueeze(2).expand_as(tokens))
        weights = scores[:, kept:] / scores[:, kept:].sum(1, keepdim=True)
        merged = (weights.unsqueeze(2) * tokens[:, kept:]).sum(1, keepdim=True)
        both, added, attention = self._update(torch.cat((leader, tokens[:, :kept], merged), 1))
        tokens = torch.cat((both[:, 1:-1], tokens[:, kept:] + added[:, -1:]), 1)
        scores = torch.cat(
            (
                scores[:, :kept].lerp(attention[:, :-1].to(scores.dtype), self.rate),
                scores[:, kept:],
            ),
            1,
        )
        back = order.argsort(1)
        tokens = tokens.gather(1, back.unsqueeze(2).expand_as(tokens))
        return both[:, :1], tokens, scores.gather(1, back)

    def _update(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mixed, attention = self.attn(self.norm1(x))
        x = x + mixed
        changed = self.mlp(self.norm2(x))
        return x + changed, mixed + changed, attention


class LightUniFormer(nn.Module):
    """UniFormer for mobile devices: only the stem's patches overlap, global blocks select their tokens.

    Maps [B, 3, H, W] to logits [B, num_classes]. `keep` and `rate`: per stage (the last two), per block.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        head_dim: int,
        mlp_ratio: float,
        overlapping: bool,
        keep: Sequence[Sequence[float]],
        rate: Sequence[Sequence[float]],
        num_classes: int,
    ) -> None:
        super().__init__()
        if overlapping:
            self.patch_embed1: nn.Module = OverlappingPatches(3, dims[0] // 2, dims[0])
        else:
            self.patch_embed1 = Patches(3, dims[0], 4)
        for stage in (2, 3, 4):
            self.add_module(f"patch_embed{stage}", Patches(*dims[stage - 2 : stage], 2))
        for stage in (1, 2):
            blocks = (LocalBlock(dims[stage - 1], mlp_ratio) for _ in range(depths[stage - 1]))
            self.add_module(f"blocks{stage}", nn.Sequential(*blocks))
        self.blocks3, self.blocks4 = (
            nn.ModuleList(
                SelectiveBlock(dim, head_dim, mlp_ratio, share, speed)
                for share, speed in zip(shares, speeds, strict=True)
            )
            for dim, shares, speeds in zip(dims[2:], keep, rate, strict=True)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[2]))
        self.cls_upsample = nn.Linear(dims[2], dims[3])
        self.norm = nn.BatchNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.blocks1(self.patch_embed1(image))
        x = self.patch_embed3(self.blocks2(self.patch_embed2(x)))
        leader = self.cls_token.expand(x.shape[0], -1, -1)
        scores = None
        for block in self.blocks3:
            x, leader, scores = block(x, leader, scores)
        assert scores is not None
        scores = _pooled(scores, x.shape[2:])
        x, leader = self.patch_embed4(x), self.cls_upsample(leader)
        for block in self.blocks4:
            x, leader, scores = block(x, leader, scores)
        return self.head(self.norm(x).mean((2, 3)))


def _pooled(scores: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Average scores [B, H W] over 2x2 positions and keep their sum."""
    pooled = nn.functional.avg_pool2d(scores.unflatten(1, (1, *size)), 2).flatten(1)
    return pooled * (scores.sum(1, keepdim=True) / pooled.sum(1, keepdim=True))


def _gain(*shape: int) -> nn.Parameter:
    # As published: along channels of maps with a leading axis of one, along those of tokens without.
    size = (1, *shape) if len(shape) > 1 else shape
    return nn.Parameter(torch.full(size, SCALE_AT_START))


def _times(gain: nn.Parameter | None, x: torch.Tensor) -> torch.Tensor:
    return x if gain is None else gain * x
