"""UniFormerV2's network: CLIP's vision transformer, frame by frame, with units that look along time.

Modules carry the names of the authors' checkpoints, without their common prefix `backbone.`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F


class QuickGELU(nn.Module):
    """x times the logistic function of 1.702 x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Attention of queries [B, N, dim] over tokens [B, M, dim]; the three projections are one matrix."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Without `tokens`, the queries look at each other."""
        if tokens is None:
            q, k, v = F.linear(queries, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            dim = queries.shape[-1]
            w, b = self.in_proj_weight, self.in_proj_bias
            q = F.linear(queries, w[:dim], b[:dim])
            k, v = F.linear(tokens, w[dim:], b[dim:]).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)  # B, heads, N, C / heads
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class LocalUnit(nn.Module):
    """A residual of [B, dim, T, H, W]: a depthwise convolution over three frames between two projections."""

    def __init__(self, dim: int, reduction: float) -> None:
        super().__init__()
        hidden = int(dim // reduction)
        self.pos_embed = nn.Sequential(
            nn.BatchNorm3d(dim),
            nn.Conv3d(dim, hidden, 1),
            nn.Conv3d(hidden, hidden, (3, 1, 1), padding=(1, 0, 0), groups=hidden),
            nn.Conv3d(hidden, dim, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.pos_embed(x)


class Block(nn.Module):
    """A block of CLIP's transformer on the tokens [B T, 1 + H W, dim] of single frames.

    Up to two `local_units` mix its patches with those of the frames beside it: before attention, before the MLP.
    """

    def __init__(self, dim: int, heads: int, local_units: int, reduction: float) -> None:
        super().__init__()
        self.lmhra1 = LocalUnit(dim, reduction) if local_units > 0 else None
        self.attn = Attention(dim, heads)
        self.ln_1 = nn.LayerNorm(dim)
        self.lmhra2 = LocalUnit(dim, reduction) if local_units > 1 else None
        self.mlp = _mlp(dim, 4 * dim)
        self.ln_2 = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """`size`: frames, rows and columns of patches."""
        if self.lmhra1 is not None:
            x = _over_patches(self.lmhra1, x, size)
        x = x + self.attn(self.ln_1(x))
        if self.lmhra2 is not None:
            x = _over_patches(self.lmhra2, x, size)
        return x + self.mlp(self.ln_2(x))


class GlobalUnit(nn.Module):
    """One query token [B, 1, dim] that looks at the tokens [B, N, dim] of all frames."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = Attention(dim, heads)
        self.ln_1 = nn.LayerNorm(dim)
        self.mlp = _mlp(dim, round(dim * mlp_ratio))
        self.ln_2 = nn.LayerNorm(dim)
        self.ln_3 = nn.LayerNorm(dim)

    def forward(self, query: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        query = query + self.attn(self.ln_1(query), self.ln_3(tokens))
        return query + self.mlp(self.ln_2(query))


class Transformer(nn.Module):
    """Blocks over frames, a token that global units carry past their later outputs, and the classifier.

    `global_layers`: after which blocks (from 0) a global unit looks at the tokens. `frozen`: the
    classifier sees that token alone, not a mixture with the frames' class tokens.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        local_units: int,
        reduction: float,
        global_layers: Sequence[int],
        mlp_ratio: float,
        frozen: bool,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.global_layers = tuple(global_layers)
        self.resblocks = nn.ModuleList(
            Block(width, heads, local_units, reduction) for _ in range(layers)
        )
        self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dpe = nn.ModuleList(
            nn.Conv3d(width, width, 3, padding=1, groups=width) for _ in self.global_layers
        )
        self.dec = nn.ModuleList(GlobalUnit(width, heads, mlp_ratio) for _ in self.global_layers)
        self.proj = nn.Sequential(
            nn.LayerNorm(width), nn.Dropout(0.5), nn.Linear(width, num_classes)
        )
        self.balance = None if frozen else nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        frames = size[0]
        query = self.temporal_cls_token.expand(x.shape[0] // frames, -1, -1)
        units = iter(zip(self.dpe, self.dec, strict=True))
        for layer, block in enumerate(self.resblocks):
            x = block(x, size)  # B T, 1 + H W, C
            if layer in self.global_layers:
                positions, unit = next(units)
                seen = _over_patches(lambda grid, conv=positions: grid + conv(grid), x, size)
                query = unit(query, seen.unflatten(0, (-1, frames)).flatten(1, 2))
        video = query[:, 0]
        if self.balance is not None:
            share = self.balance.sigmoid()
            video = (1 - share) * video + share * x[:, 0].unflatten(0, (-1, frames)).mean(1)
        return self.proj(video)


class UniFormerV2(nn.Module):
    """Maps a clip [B, 3, T, resolution, resolution] to logits [B, num_classes].

    `halve_frames`: patches span three frames and every second frame is left out.
    """

    def __init__(
        self,
        resolution: int,
        patch: int,
        width: int,
        layers: int,
        heads: int,
        local_units: int,
        halve_frames: bool,
        global_layers: Sequence[int],
        num_classes: int,
        frozen: bool = False,
        reduction: float = 1.5,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        depth, every = (3, 2) if halve_frames else (1, 1)
        self.conv1 = nn.Conv3d(
            3,
            width,
            (depth, patch, patch),
            stride=(every, patch, patch),
            padding=(depth // 2, 0, 0),
            bias=False,
        )
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        places = (resolution // patch) ** 2 + 1
        self.positional_embedding = nn.Parameter(torch.randn(places, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width,
            layers,
            heads,
            local_units,
            reduction,
            global_layers,
            mlp_ratio,
            frozen,
            num_classes,
        )

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        x = self.conv1(clip)  # B, C, T, H, W
        size = x.shape[2:]
        x = x.flatten(3).permute(0, 2, 3, 1).flatten(0, 1)  # B T, H W, C
        first = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat((first, x), 1) + self.positional_embedding
        return self.transformer(self.ln_pre(x), size)


def _over_patches(
    unit: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, size: Sequence[int]
) -> torch.Tensor:
    """Apply a function of maps [B, C, T, H, W] to the patches of tokens [B T, 1 + H W, C], not to the class tokens."""
    frames, rows, columns = size
    grid = x[:, 1:].unflatten(0, (-1, frames)).unflatten(2, (rows, columns))
    grid = unit(grid.movedim(-1, 1)).movedim(1, -1)  # B, T, H, W, C
    return torch.cat((x[:, :1], grid.flatten(2, 3).flatten(0, 1)), 1)


def _mlp(dim: int, hidden: int) -> nn.Sequential:
    layers = {
        "c_fc": nn.Linear(dim, hidden),
        "gelu": QuickGELU(),
        "c_proj": nn.Linear(hidden, dim),
    }
    return nn.Sequential(OrderedDict(layers))
