"""A network that ends in features, served as an embedding."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import nn

from models.layers.pixels import Normalisation
from models.layers.precision import convert
from models.serving import Arrays, Device, Predictor
from service.triton.cards import Card


class Represents(Protocol):
    """What a network must offer to be an embedding."""

    def represent(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map normalised pictures [B, 3, H, W] to one vector [B, D] and a dense map [B, h, w, C]."""
        ...


class Embedder(Predictor):
    """IMAGE `uint8` [B, 3, H, W] to EMBEDDING float32 [B, D], not scaled to unit length.

    With DENSE int32 [B, 1] (1) also FEATURES float32 [B, h, w, C], the map of features.
    """

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        assert card.image is not None
        self._network = cast(Represents, convert(network, device))
        self._normalise = Normalisation(card.image, device)
        self._device = device

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Arrays:
        image = self._normalise(batch["IMAGE"])
        with self._device.autocast():
            vector, features = self._network.represent(image)
        answer = {"EMBEDDING": vector.float().cpu().numpy()}
        if "DENSE" in batch and batch["DENSE"].any():
            answer["FEATURES"] = features.float().cpu().numpy()
        return answer
