"""Multi-scale deformable attention (https://arxiv.org/abs/2010.04159, section 4.1), in plain torch.

Every query looks at a few places of each map, near its own, that it chooses itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

Sizes = Sequence[tuple[int, int]]


class DeformableAttention(nn.Module):
    """Lets queries [B, Q, dim] look at `points` places in each of `levels` maps. Names are those of Deformable DETR.

    `ratio`: width of the values over that of the queries.
    """

    def __init__(self, dim: int, levels: int, heads: int, points: int, ratio: float = 1.0) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        inner = int(dim * ratio)
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, inner)
        self.output_proj = nn.Linear(inner, dim)

    def forward(
        self, query: torch.Tensor, places: torch.Tensor, features: torch.Tensor, sizes: Sizes
    ) -> torch.Tensor:
        """Return what the queries see, [B, Q, dim].

        `places` [Q, 2]: where each query is, (x, y) as shares of any map. `features` [B, N, dim]: the maps of `sizes`
        (height, width), one after the other, row by row.
        """
        value = self.value_proj(features).unflatten(2, (self.heads, -1))  # B, N, heads, width
        grid = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).unflatten(2, (*grid, 2)).float()
        weights = self.attention_weights(query).unflatten(2, (self.heads, -1)).softmax(-1)
        weights = weights.unflatten(3, grid[1:])  # B, Q, heads, levels, points
        extent = offsets.new_tensor([(width, height) for height, width in sizes])
        where = places[:, None, None, None] + offsets / extent[:, None]
        seen = query.new_zeros(())
        for level, (part, (height, width)) in enumerate(
            zip(value.split([h * w for h, w in sizes], 1), sizes, strict=True)
        ):
            maps = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (height, width))
            at = where[:, :, :, level].transpose(1, 2).flatten(0, 1)  # B * heads, Q, points, 2
            sampled = F.grid_sample(
                maps, (2 * at - 1).to(maps.dtype), padding_mode="zeros", align_corners=False
            )  # B * heads, width, Q, points
            share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
            seen = seen + (sampled * share).sum(3)
        joined = seen.unflatten(0, (-1, self.heads)).flatten(1, 2).transpose(1, 2)
        return self.output_proj(joined)


def cell_centres(sizes: Sizes, device: torch.device) -> torch.Tensor:
    """Return the centres of the cells of maps of `sizes` (height, width), one after the other: [N, 2] of (x, y) in 0..1."""
    centres = []
    for height, width in sizes:
        y, x = torch.meshgrid(
            (torch.arange(height, device=device) + 0.5) / height,
            (torch.arange(width, device=device) + 0.5) / width,
            indexing="ij",
        )
        centres.append(torch.stack((x, y), 2).flatten(0, 1))
    return torch.cat(centres)
