"""A network that divides a picture into segments, served as a segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.pixels import Normalisation
from models.layers.precision import convert
from models.serving import Arrays, Device, InvalidInput, Outputs, Predictor
from service.triton.cards import Card

# Maps of full size that are in memory at once.
_AT_ONCE = 8
_MOST_PIXELS = 2**24


@dataclass(frozen=True)
class Segmentation:
    """What a network finds in one picture, at the size that was asked for.

    `mask` is int32 [H, W], `segments` the rows (id, class, score) of what is in it; both as the task's signature
    says. `probabilities` float32 [H, W] is what a binary mask was decided from, `depth` the number of
    encoder layers that were used, of a network that can use fewer than it has.
    """

    mask: Tensor
    segments: Sequence[tuple[int, int, float]]
    probabilities: Tensor | None = None
    depth: int | None = None


class Segments(Protocol):
    """What a network must offer to be a segmenter."""

    def predict(self, image: Tensor, depths: Sequence[int]) -> Sequence[Any]:
        """Map normalised pictures [B, 3, H, W] to what `decide` takes, one for each.

        `depths` says for each how many layers of the encoder to use, 0 where that is the network's to
        decide; others but networks that can use fewer than they have do not look at it.
        """
        ...

    def decide(self, predicted: Any, size: tuple[int, int]) -> Segmentation:
        """Turn what was predicted of one picture into segments at `size` (height, width), in float32."""
        ...


class Segmenter(Predictor):
    """IMAGE `uint8` [B, 3, H, W] to MASK int32 and SEGMENTS float32 [N, 3], lists of one array a picture.

    SIZE int32 [B, 2] (height, width) is the size of MASK, by default that of IMAGE. With DEPTH int32 [B, 1] also
    DEPTH_USED int32 [1]; with PROBABILITY int32 [B, 1] (1), of binary models, PROBABILITIES float32 of the size of
    MASK. Pictures are decided one after the other: at their full size they need more memory than the network.
    """

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        assert card.image is not None
        self._network = cast(Segments, convert(network, device))
        self._normalise = Normalisation(card.image, device)
        self._device = device

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Outputs:
        pixels = batch["IMAGE"]
        sizes = batch.get("SIZE", np.tile(np.array(pixels.shape[2:], np.int32), (len(pixels), 1)))
        for height, width in sizes.tolist():
            if min(height, width) < 1 or height * width > _MOST_PIXELS:
                raise InvalidInput(
                    f"a mask of {height} x {width} pixels; it must have 1 to {_MOST_PIXELS:,}"
                )
        depths = batch.get("DEPTH", np.zeros((len(pixels), 1), np.int32))[:, 0].tolist()
        image = self._normalise(pixels)
        with self._device.autocast():
            predicted = self._network.predict(image, depths)
        found = [
            self._network.decide(each, (height, width))
            for each, (height, width) in zip(predicted, sizes.tolist(), strict=True)
        ]
        answer: dict[str, list[np.ndarray]] = {
            "MASK": [each.mask.to(torch.int32).cpu().numpy() for each in found],
            "SEGMENTS": [np.array(each.segments, np.float32).reshape(-1, 3) for each in found],
        }
        maps = [each.probabilities for each in found if each.probabilities is not None]
        if "PROBABILITY" in batch and batch["PROBABILITY"].any() and maps:
            answer["PROBABILITIES"] = [each.float().cpu().numpy() for each in maps]
        used = [each.depth for each in found if each.depth is not None]
        if "DEPTH" in batch and used:
            answer["DEPTH_USED"] = [np.array([depth], np.int32) for depth in used]
        return answer


def resized(maps: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Interpolate maps [K, h, w] bilinearly to [K, H, W]."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=align_corners)[0]


def strongest(maps: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the largest value [H, W] of `maps` [K, h, w] at `size` and whose it is; of equals, the first.

    All maps at full size never are in memory at the same time.
    """
    most = torch.full(size, -torch.inf, device=maps.device)
    whose = torch.zeros(size, dtype=torch.int64, device=maps.device)
    for first in range(0, len(maps), _AT_ONCE):
        values, index = resized(maps[first : first + _AT_ONCE].float(), size).max(0)
        whose = torch.where(values > most, index + first, whose)
        most = torch.maximum(values, most)
    return most, whose


def semantic(maps: Tensor, size: tuple[int, int], activation: str = "softmax") -> Segmentation:
    """Give each pixel its strongest class, from maps of the classes [C, h, w].

    `activation`: `softmax` for logits, `none` for what is a probability already; it bears on the scores only.
    """
    values, mask = strongest(maps, size)
    if activation == "softmax":
        total = torch.full(size, -torch.inf, device=maps.device)
        for part in maps.float().split(_AT_ONCE):
            total = torch.logaddexp(total, resized(part, size).logsumexp(0))
        values = (values - total).exp()
    counts = mask.flatten().bincount(minlength=len(maps))
    sums = torch.zeros(len(maps), device=maps.device).index_add(0, mask.flatten(), values.flatten())
    rows = [
        (index, index, min(1.0, float(sums[index] / counts[index])))
        for index in counts.nonzero()[:, 0].tolist()
    ]
    return Segmentation(mask.to(torch.int32), rows)


def binary(probabilities: Tensor, size: tuple[int, int], threshold: float) -> Segmentation:
    """Mark the pixels whose probability, from a map [h, w], is above `threshold`."""
    values = resized(probabilities[None].float(), size)[0]
    mask = values > threshold
    rows = [(1, 0, float(values[mask].mean()))] if mask.any() else []
    return Segmentation(mask.to(torch.int32), rows, values)
