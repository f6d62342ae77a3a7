"""A network that was trained by restoring pictures, served as what it learnt that way."""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
import torch
from torch import nn

from models.layers.pixels import Normalisation
from models.layers.precision import convert
from models.serving import Arrays, Device, InvalidInput, Predictor
from service.triton.cards import Card, Parameter

# What a caller may say of the picture's hidden part, with the share that the paper hides as the default.
_LEAST_SHARE, _GREATEST_SHARE = 0.05, 0.95


class Restores(Protocol):
    """What a network must offer to be a restorer."""

    def hide(self, size: tuple[int, int], share: float, stream: torch.Generator) -> torch.Tensor:
        """Choose about `share` of the pixels of a picture of (height, width): bool [H, W], on the CPU."""
        ...

    def restore(self, image: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Predict normalised pictures [B, 3, H, W] without looking at their pixels `hidden` [B, H, W].

        All of a batch have equally many hidden pixels where the network needs that.
        """
        ...


def parameters(share: float) -> dict[str, Parameter]:
    """Return the card's parameters of a restorer that hides `share` of a picture by default."""
    return {
        "share": Parameter(
            type="number",
            default=share,
            minimum=_LEAST_SHARE,
            maximum=_GREATEST_SHARE,
            description="Share of the picture that is hidden.",
        ),
        "seed": Parameter(
            type="integer",
            default=0,
            minimum=0,
            maximum=2**63 - 1,
            description="Decides which parts are hidden.",
        ),
    }


class Restorer(Predictor):
    """IMAGE `uint8` [B, 3, H, W], with SHARE float32 [B, 1] and SEED int64 [B, 1], to RESTORED and HIDDEN.

    RESTORED `uint8` [B, 3, H, W] has the network's prediction where HIDDEN `uint8` [B, H, W] is 1, and the
    picture's own pixels where it is 0. Equal SHARE and SEED hide the same places; without them the card's
    share, and those of seed 0.
    """

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        assert card.image is not None
        self._network = cast(Restores, convert(network, device))
        self._normalise = Normalisation(card.image, device)
        self._mean = torch.tensor(card.image.mean).view(3, 1, 1)
        self._std = torch.tensor(card.image.std).view(3, 1, 1)
        self._device = device
        self._share = card.parameters["share"].default

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Arrays:
        image = self._normalise(batch["IMAGE"])
        pixels = torch.tensor(batch["IMAGE"])
        shares = batch.get("SHARE", np.full(len(pixels), self._share)).reshape(-1)
        seeds = batch.get("SEED", np.zeros(len(pixels), np.int64)).reshape(-1)
        hidden = torch.stack(
            [self._hidden(image, float(s), int(n)) for s, n in zip(shares, seeds, strict=True)]
        )
        restored = torch.empty_like(pixels)
        # Networks that see the rest only need equally much of it in every picture.
        for count in hidden.sum((1, 2)).unique():
            chosen = (hidden.sum((1, 2)) == count).nonzero()[:, 0]
            there = chosen.to(image.device)
            with self._device.autocast():
                made = self._network.restore(image[there], hidden[chosen].to(image.device))
            shown = (made.float().cpu() * self._std + self._mean).clamp(0, 1) * 255
            restored[chosen] = shown.round().to(torch.uint8)
        restored = torch.where(hidden[:, None], restored, pixels)
        return {"RESTORED": restored.numpy(), "HIDDEN": hidden.to(torch.uint8).numpy()}

    def _hidden(self, image: torch.Tensor, share: float, seed: int) -> torch.Tensor:
        if not _LEAST_SHARE <= share <= _GREATEST_SHARE:
            raise InvalidInput(
                f"share {share:g}: this model hides {_LEAST_SHARE} to {_GREATEST_SHARE} of a picture"
            )
        stream = torch.Generator().manual_seed(seed)
        return self._network.hide((image.shape[2], image.shape[3]), share, stream)
