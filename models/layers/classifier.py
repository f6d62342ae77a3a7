"""A network that ends in logits, served as a classifier."""

from __future__ import annotations

import torch
from torch import nn

from models.layers.explained import named, wanted_classes
from models.layers.graph import FeedForward, Graph
from models.layers.hires_cam import METHOD, HiResCam
from models.layers.pixels import Normalisation
from models.layers.precision import convert
from models.serving import Arrays, Device
from service.triton.cards import Card


class Scores(Graph):
    """IMAGE [B, 3, H, W] to SCORES [B, C]: probabilities by the card's activation."""

    input = "IMAGE"
    outputs = ("SCORES",)

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        super().__init__()
        assert card.image is not None
        self.network = convert(network, device)
        self.normalise = Normalisation(card.image, device)
        self.activation = torch.sigmoid if card.activation == "sigmoid" else _softmax
        self.device = device

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.activation(self.logits(self.normalise.scaled(pixels))),)

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Map normalised pictures to float32 logits."""
        with self.device.autocast():
            return self.network(image).float()


class Classifier(FeedForward):
    """IMAGE `uint8` [B, 3, H, W] to SCORES float32 [B, C]: probabilities by the card's activation.

    With CLASS int32 [B, 1] (-1: the most probable one) also HEATMAP float32 [B, h, w] in 0..1, where
    in the picture the evidence for that class lies, and METHOD [B, 1], how that was found.
    """

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        self.graph: Scores = Scores(network, card, device)
        self._evidence = HiResCam(self.graph.network, self.graph.logits)

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Arrays:
        pixels = self.graph.normalise.moved(batch["IMAGE"])
        if "CLASS" not in batch:
            (scores,) = self.graph(pixels)
            return {"SCORES": scores.cpu().numpy()}
        image = self.graph.normalise.scaled(pixels)
        logits = self.graph.logits(image)
        wanted = wanted_classes(batch, *logits.shape).to(logits.device)
        maps = self._evidence(image, torch.where(wanted < 0, logits.argmax(1), wanted))
        return {
            "SCORES": self.graph.activation(logits).cpu().numpy(),
            "HEATMAP": maps.cpu().numpy(),
            "METHOD": named(METHOD, len(image)),
        }


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(dim=-1)
