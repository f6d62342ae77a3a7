"""A network that ends in logits, served as a classifier."""

from __future__ import annotations

import torch
from torch import nn

from models.layers.explained import named, wanted_classes
from models.layers.hires_cam import METHOD, HiResCam
from models.layers.pixels import Normalisation
from models.layers.precision import convert
from models.serving import Arrays, Device, Predictor
from service.triton.cards import Card


class Classifier(Predictor):
    """IMAGE `uint8` [B, 3, H, W] to SCORES float32 [B, C]: probabilities by the card's activation.

    With CLASS int32 [B, 1] (-1: the most probable one) also HEATMAP float32 [B, h, w] in 0..1, where
    in the picture the evidence for that class lies, and METHOD [B, 1], how that was found.
    """

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        assert card.image is not None
        self._network = convert(network, device)
        self._normalise = Normalisation(card.image, device)
        self._device = device
        self._activation = torch.sigmoid if card.activation == "sigmoid" else _softmax
        self._evidence = HiResCam(self._network, self._logits)

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Arrays:
        image = self._normalise(batch["IMAGE"])
        logits = self._logits(image)
        scores = self._activation(logits).cpu().numpy()
        if "CLASS" not in batch:
            return {"SCORES": scores}
        wanted = wanted_classes(batch, *logits.shape).to(logits.device)
        maps = self._evidence(image, torch.where(wanted < 0, logits.argmax(1), wanted))
        return {
            "SCORES": scores,
            "HEATMAP": maps.cpu().numpy(),
            "METHOD": named(METHOD, len(image)),
        }

    def _logits(self, image: torch.Tensor) -> torch.Tensor:
        with self._device.autocast():
            return self._network(image).float()


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(dim=-1)
