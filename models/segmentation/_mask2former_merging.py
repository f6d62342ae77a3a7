"""How Mask2Former's queries become segments that do not overlap (its panoptic inference)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.segmenter import Segmentation, resized

# Maps of full size that are in memory at once.
_AT_ONCE = 8


@dataclass(frozen=True)
class Merging:
    """`score`: least probability of a query's class; `mask`: least probability of its pixels; `overlap`: least
    ratio of the pixels where the query is the strongest to those it would have alone."""

    score: float = 0.8
    mask: float = 0.5
    overlap: float = 0.8


@dataclass(frozen=True)
class Masks:
    """Logits [Q, h, w] of a picture that was `sent` (height, width) and filled up to `padded` for the network."""

    logits: Tensor
    sent: tuple[int, int]
    padded: tuple[int, int]

    def at(self, queries: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the logits of some queries at the size of the answer."""
        full = resized(self.logits[queries].float(), self.padded)
        return resized(full[:, : self.sent[0], : self.sent[1]], size)


def panoptic(
    classes: Tensor,
    masks: Masks,
    size: tuple[int, int],
    settings: Merging,
    things: Sequence[int],
) -> Segmentation:
    """Turn class logits [Q, K + 1] and masks into segments numbered from 1 on, in the order of the queries."""
    scores, labels = classes.float().softmax(-1).max(-1)
    kept = ((labels < classes.shape[-1] - 1) & (scores > settings.score)).nonzero()[:, 0]
    strength = torch.full(size, -torch.inf, device=classes.device)
    owner = torch.full(size, -1, device=classes.device)
    owned = torch.zeros(size, device=classes.device)
    alone: list[int] = []
    # Of no queries at all there is one part, which is empty.
    for queries in kept.split(_AT_ONCE) if len(kept) else ():
        probabilities = masks.at(queries, size).sigmoid()
        alone += (probabilities >= settings.mask).sum((1, 2)).tolist()
        strongest, index = (scores[queries, None, None] * probabilities).max(0)
        better = strongest > strength
        strength = torch.where(better, strongest, strength)
        owner = torch.where(better, queries[index], owner)
        owned = torch.where(better, probabilities.gather(0, index[None])[0], owned)
    mask = torch.zeros(size, dtype=torch.int32, device=classes.device)
    rows: list[tuple[int, int, float]] = []
    stuff: dict[int, int] = {}
    known = frozenset(things)
    for query, area in zip(kept.tolist(), alone, strict=True):
        here = owner == query
        segment = here & (owned >= settings.mask)
        if not segment.any() or int(here.sum()) < settings.overlap * area:
            continue
        label = int(labels[query])
        if label in stuff:
            mask[segment] = stuff[label]
            continue
        rows.append((len(rows) + 1, label, float(scores[query])))
        mask[segment] = len(rows)
        if label not in known:
            stuff[label] = len(rows)
    return Segmentation(mask, rows)
