"""A network that finds objects, served: boxes, scores, classes and, of those that draw them, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import nn

from models.layers.pixels import Normalisation
from models.layers.precision import convert
from models.serving import Arrays, Device, InvalidInput, Predictor
from service.triton.cards import Card, Parameter


@dataclass(frozen=True)
class Detections:
    """What was found in one picture, best first.

    `boxes` float32 [N, 4] x0, y0, x1, y1 in pixels, `scores` float32 [N], `classes` int64 [N]; `masks` float32
    [N, h, w], probabilities on a grid over the box, None of networks without masks.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor
    masks: torch.Tensor | None


class Detects(Protocol):
    """What a network must offer to be a detector."""

    def __call__(
        self,
        image: torch.Tensor,
        thresholds: Sequence[float],
        most: Sequence[int],
    ) -> list[Detections]:
        """Detect objects in normalised pictures [B, 3, H, W].

        `thresholds` and `most`: of each picture, the score that a detection must exceed, and their number.
        """
        ...


def parameters(most: int, threshold: float = 0.3) -> dict[str, Parameter]:
    """Return the card's parameters of a detector that finds `most` objects at most."""
    return {
        "threshold": Parameter(
            type="number",
            default=threshold,
            minimum=0,
            maximum=1,
            description="Score that a detection must exceed.",
        ),
        "max_detections": Parameter(
            type="integer",
            default=min(100, most),
            minimum=1,
            maximum=most,
            description="How many detections there are at most, best first.",
        ),
    }


class Detector(Predictor):
    """IMAGE `uint8` [B, 3, H, W], with THRESHOLD float32 [B, 1] and MAX_DETECTIONS int32 [B, 1], to what is in it.

    BOXES float32 [B, N, 4] are shares of the picture, SCORES float32 [B, N], CLASSES int32 [B, N], and MASKS `uint8`
    [B, N, h, w] of networks that draw them. N is the largest number of detections in a picture of the
    batch, at least 1; rows without a detection hold zeros.
    """

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        assert card.image is not None
        self.network = convert(network, device)
        self._normalise = Normalisation(card.image, device)
        self._device = device
        self._parameters = card.parameters

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Arrays:
        thresholds = self._given("threshold", batch)
        most = [int(number) for number in self._given("max_detections", batch)]
        pixels = self._normalise.moved(batch["IMAGE"])
        height, width = pixels.shape[2:]
        image = self._normalise.scaled(pixels)
        with self._device.autocast():
            found = cast(Detects, self.network)(image, thresholds, most)
        rows = max(1, *(len(one.scores) for one in found))
        size = torch.tensor([width, height, width, height], dtype=torch.float32)
        answer: Arrays = {
            "BOXES": _table([(one.boxes.cpu() / size).clamp(0, 1) for one in found], rows),
            "SCORES": _table([one.scores.cpu().float() for one in found], rows),
            "CLASSES": _table([one.classes.cpu().int() for one in found], rows),
        }
        masks = [one.masks for one in found if one.masks is not None]
        if masks:
            answer["MASKS"] = _table([(255 * m).round().byte().cpu() for m in masks], rows)
        return answer

    def _given(self, name: str, batch: Arrays) -> list[float]:
        """Return a parameter of each picture. Raises InvalidInput if it is outside of the card's range."""
        rule = self._parameters[name]
        low, high = rule.minimum or 0, rule.maximum or 1
        default = np.full(len(batch["IMAGE"]), rule.default)
        given = [float(value) for value in batch.get(name.upper(), default).reshape(-1)]
        for value in given:
            if not low <= value <= high:
                raise InvalidInput(f"{name} {value:g}: this model takes {low:g} to {high:g}")
        return given


def _table(parts: Sequence[torch.Tensor], rows: int) -> np.ndarray:
    """Return what was found in each picture with zeros up to `rows`: [B, rows, ...]."""
    table = parts[0].new_zeros((len(parts), rows, *parts[0].shape[1:]))
    for number, part in enumerate(parts):
        table[number, : len(part)] = part
    return table.numpy()
