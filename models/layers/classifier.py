"""A network that ends in logits, served as a classifier."""

from __future__ import annotations

import torch
from torch import nn

from models.layers.pixels import Normalisation
from models.layers.precision import convert
from models.serving import Arrays, Device, Predictor
from service.triton.cards import Card


class Classifier(Predictor):
    """IMAGE `uint8` [B, 3, H, W] to SCORES float32 [B, C]: probabilities by the card's activation."""

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        assert card.image is not None
        self._network = convert(network, device)
        self._normalise = Normalisation(card.image, device)
        self._device = device
        self._activation = torch.sigmoid if card.activation == "sigmoid" else _softmax

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Arrays:
        image = self._normalise(batch["IMAGE"])
        with self._device.autocast():
            logits = self._network(image)
        return {"SCORES": self._activation(logits.float()).cpu().numpy()}


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(dim=-1)
