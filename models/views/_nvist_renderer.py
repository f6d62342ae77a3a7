"""Rendering of a radiance field made of planes and vectors, after TensoRF (NViST, section 3.4).

A point's features are products of what it meets on a plane and on the vector across it. Scenes use the
conventions of OpenCV: x to the right, y down, z away from the camera.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A plane's axes, its width first, and the axis of the vector that belongs to it.
_PLANES = ((0, 1), (2, 0), (1, 2))
_VECTORS = (2, 1, 0)


@dataclass(frozen=True)
class Field:
    """Three planes [3, B, C, R, R] and three vectors [3, B, C, R, 1]; C channels, first the density's."""

    planes: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class Rendered:
    """Colours [B, R, 3] in 0..1, depths [B, R] along the rays, and the samples' weights [B, R, samples]."""

    colour: Tensor
    depth: Tensor
    weights: Tensor


class Renderer(nn.Module):
    """Colours and depths of rays, by samples in the middle of equal intervals between two depths."""

    def __init__(
        self,
        *,
        density_dim: int,
        colour_dim: int,
        hidden_dim: int,
        frequencies: int,
        samples: int,
        depths: tuple[float, float],
        box: tuple[tuple[float, float, float], tuple[float, float, float]],
    ) -> None:
        super().__init__()
        self.dims = (density_dim, colour_dim)
        self.frequencies = frequencies
        self.rgb_matrix = nn.Sequential(nn.GELU(), nn.Linear(3 * colour_dim, hidden_dim), nn.GELU())
        self.rgb_mlp = nn.Sequential(
            nn.Linear(hidden_dim + 3 + 6 * frequencies, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, 3),
        )
        edges = torch.linspace(*depths, samples + 1)
        self.register_buffer("middles", (edges[1:] + edges[:-1]) / 2, persistent=False)
        self.register_buffer("lengths", edges.diff(), persistent=False)
        self.register_buffer("box", torch.tensor(box), persistent=False)

    def forward(
        self, field: Field, origins: Tensor, directions: Tensor, background: float = 0.0
    ) -> Rendered:
        """Render rays [B, R, 3] of any length; `background` is the grey, 0..1, of what no density hides."""
        directions = F.normalize(directions, dim=-1)
        points = origins[:, :, None] + directions[:, :, None] * self.middles[:, None]
        density, colours = self._features(field, self._in_box(points))
        alpha = 1 - torch.exp(-density * self.lengths)
        # What gets through to a sample, and in the last column through all of them.
        passed = torch.cumprod(F.pad(1 - alpha + 1e-10, (1, 0), value=1.0), dim=-1)
        weights = alpha * passed[..., :-1]
        colour = (weights[..., None] * self._seen_from(colours, directions)).sum(2)
        colour = colour + background * (1 - weights.sum(-1, keepdim=True))
        return Rendered(colour, (weights * self.middles).sum(-1), weights)

    def _in_box(self, points: Tensor) -> Tensor:
        low, high = self.box
        return (points - low) * (2 / (high - low)) - 1

    def _features(self, field: Field, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return density [B, R, S] and features of the colour [B, R, S, 3 * colour_dim] at points in -1..1."""
        densities, colours = [], []
        for plane, vector, axes, axis in zip(
            field.planes, field.vectors, _PLANES, _VECTORS, strict=True
        ):
            across = points[..., axis]
            along = torch.stack((torch.zeros_like(across), across), dim=-1)
            met = _sampled(plane, points[..., axes]) * _sampled(vector, along)  # B, C, R, S
            density, colour = met.split(self.dims, dim=1)
            densities.append(density)
            colours.append(colour)
        density = torch.cat(densities, dim=1).sum(1).relu()
        return density, torch.cat(colours, dim=1).movedim(1, -1)

    def _seen_from(self, features: Tensor, directions: Tensor) -> Tensor:
        """Return colours [B, R, S, 3] of features seen along unit directions [B, R, 3]."""
        octaves = 2.0 ** torch.arange(self.frequencies, device=directions.device)
        angles = (directions[..., None] * octaves).flatten(2)
        encoded = torch.cat((angles.sin(), angles.cos(), directions), dim=-1)
        hidden = self.rgb_matrix(features)
        encoded = encoded[:, :, None].expand(-1, -1, hidden.shape[2], -1)
        return self.rgb_mlp(torch.cat((hidden, encoded), dim=-1)).sigmoid()


def _sampled(grid: Tensor, places: Tensor) -> Tensor:
    """Return values [B, C, R, S] of a grid [B, C, H, W] at places (x, y) in -1..1 [B, R, S, 2]; 0 outside."""
    return F.grid_sample(grid, places, mode="bilinear", padding_mode="zeros", align_corners=False)


def rays(pose: Tensor, focal: float, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the origins and unit directions [H * W, 3] of a view's pixels, row by row.

    `pose` [4, 4] maps the camera's coordinates to the scene's; `focal` is in pixels of a picture of `size`
    (height, width), whose rays go through the pixels' middles.
    """
    height, width = size
    rows = (torch.arange(height, device=pose.device) + 0.5 - height / 2) / focal
    columns = (torch.arange(width, device=pose.device) + 0.5 - width / 2) / focal
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    inside = F.normalize(torch.stack((x, y, torch.ones_like(x)), dim=-1).view(-1, 3), dim=-1)
    return pose[:3, 3].expand_as(inside), inside @ pose[:3, :3].T


def view(
    renderer: Renderer,
    field: Field,
    pose: Tensor,
    focal: float,
    size: tuple[int, int],
    *,
    background: float = 0.0,
    at_once: int = 4096,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the colours [B, n, 3] and depths [B, n] of a view, `at_once` pixels at a time, row by row."""
    origins, directions = rays(pose, focal, size)
    batch = field.planes.shape[1]
    for some in zip(origins.split(at_once), directions.split(at_once), strict=True):
        rendered = renderer(field, *(x.expand(batch, -1, -1) for x in some), background)
        yield rendered.colour, rendered.depth
