"""How kMaX-DeepLab's queries become segments that do not overlap (its panoptic inference, settings per data set).

Pixels belong to queries by a softmax over the queries. Above a share `1 / n` no pixel can belong to more than
n - 1 of them, so that instead of a mask for each query there are n - 1 maps of owners, and the logits at full
size are only ever computed for a band of rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.layers.segmenter import Segmentation

# Logits at full size that are in memory at once.
_BAND_VALUES = 2**24


@dataclass(frozen=True)
class Merging:
    """`thing` and `stuff`: least probability of a class; `pixel`: least share of a query in its pixels; `overlap`:
    least share of its pixels that better queries must leave it. Better is the one with the greater
    `class probability ** class_weight * mean share ** mask_weight`."""

    thing: float
    stuff: float
    pixel: float = 0.4
    overlap: float = 0.8
    class_weight: float = 1.0
    mask_weight: float = 1.0


@dataclass(frozen=True)
class Masks:
    """Logits [Q, h, w] of a picture that was `sent` (height, width) and filled up to `padded` for the network."""

    logits: Tensor
    sent: tuple[int, int]
    padded: tuple[int, int]

    def at(self, size: tuple[int, int]) -> ResizedMasks:
        """Return the masks of a picture that was of `size` before it was resized to be sent."""
        # As much of the padded picture as the authors cut out, which is not exactly what was filled: sizes are
        # rounded half to even here, half up in resizing.
        scale = max(self.sent) / max(size)
        cut = [round(side * scale) for side in size]
        if any(abs(a - b) > 1 for a, b in zip(cut, self.sent, strict=True)):
            cut = list(self.sent)
        rows, columns = (min(a, b) for a, b in zip(cut, self.padded, strict=True))
        aligned = self.padded[1] % 2 == 1
        identity = torch.eye(self.logits.shape[1], device=self.logits.device)
        vertical = _resize(_resize(identity, self.padded[0], aligned)[..., :rows], size[0], aligned)
        logits = _resize(self.logits.float(), self.padded[1], aligned)[..., :columns]
        return ResizedMasks(_resize(logits, size[1], aligned), vertical.T)


@dataclass(frozen=True)
class ResizedMasks:
    """Logits [Q, h, W], wide as the answer but not yet high, and what makes its rows of theirs, [H, h]."""

    logits: Tensor
    vertical: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows of the logits at full size: [Q, stop - start, W]."""
        weights = self.vertical[start:stop]
        used = weights.any(0).nonzero()[:, 0]
        first, last = int(used[0]), int(used[-1]) + 1
        return weights[:, first:last] @ self.logits[:, first:last]


def panoptic(
    classes: Tensor, masks: ResizedMasks, settings: Merging, things: Sequence[int]
) -> Segmentation:
    """Turn class logits [Q, K + 1] and masks into segments numbered from 1 on, in the order of their score."""
    scores, labels = classes.float().softmax(-1)[:, :-1].max(-1)
    owners, areas, shares = _owners(masks, settings.pixel)
    ranking = scores**settings.class_weight * shares**settings.mask_weight
    mask = torch.zeros(owners.shape[1:], dtype=torch.int32, device=owners.device)
    rows: list[tuple[int, int, float]] = []
    stuff: dict[int, int] = {}
    known = frozenset(things)
    for query in ranking.argsort(descending=True, stable=True).tolist():
        label = int(labels[query])
        if scores[query] <= (settings.thing if label in known else settings.stuff):
            continue
        free = (owners == query).any(0) & (mask == 0)
        # Also refuses queries without a pixel.
        if not free.sum() > areas[query] * settings.overlap:
            continue
        if label in stuff:
            mask[free] = stuff[label]
            continue
        rows.append((len(rows) + 1, label, float(ranking[query])))
        mask[free] = len(rows)
        if label not in known:
            stuff[label] = len(rows)
    return Segmentation(mask, rows)


def _owners(masks: ResizedMasks, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return who owns each pixel, [n, H, W] with -1 for nobody, and of each query its pixels and mean share there."""
    (queries, _, width), height = masks.logits.shape, len(masks.vertical)
    most = min(queries, math.ceil(1 / least) - 1)
    owners = torch.full((most, height, width), -1, device=masks.logits.device)
    areas = torch.zeros(queries, device=owners.device)
    sums = torch.zeros(queries, device=owners.device)
    band = max(1, _BAND_VALUES // (queries * width))
    for start in range(0, height, band):
        shares = masks.rows(start, min(start + band, height)).softmax(0)
        for owner in owners[:, start : start + band]:
            share, query = shares.max(0)
            held = share > least
            owner[held] = query[held]
            areas.index_add_(0, query[held], torch.ones_like(share[held]))
            sums.index_add_(0, query[held], share[held])
            shares.scatter_(0, query[None], -1)
    return owners, areas, sums / areas.clamp(min=1)


def _resize(maps: Tensor, length: int, aligned: bool) -> Tensor:
    """Interpolate along the last axis."""
    flat = maps.reshape(1, -1, maps.shape[-1])
    resized = F.interpolate(flat, length, mode="linear", align_corners=aligned)
    return resized.reshape(*maps.shape[:-1], length)
