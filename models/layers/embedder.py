"""A network that ends in features, served as an embedding."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import nn

from models.layers.graph import FeedForward, Graph
from models.layers.pixels import Normalisation
from models.layers.precision import convert
from models.serving import Arrays, Device
from service.triton.cards import Card


class Represents(Protocol):
    """What a network must offer to be an embedding."""

    def represent(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map normalised pictures [B, 3, H, W] to one vector [B, D] and a dense map [B, h, w, C]."""
        ...


class Features(Graph):
    """IMAGE [B, 3, H, W] to EMBEDDING [B, D] and FEATURES [B, h, w, C]."""

    input = "IMAGE"
    outputs = ("EMBEDDING", "FEATURES")

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        super().__init__()
        assert card.image is not None
        self.network = convert(network, device)
        self.normalise = Normalisation(card.image, device)
        self.device = device

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        image = self.normalise.scaled(pixels)
        with self.device.autocast():
            vector, features = cast(Represents, self.network).represent(image)
        return vector.float(), features.float()


class Embedder(FeedForward):
    """IMAGE `uint8` [B, 3, H, W] to EMBEDDING float32 [B, D], not scaled to unit length.

    With DENSE int32 [B, 1] (1) also FEATURES float32 [B, h, w, C], the map of features.
    """

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        self.graph: Features = Features(network, card, device)

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Arrays:
        vector, features = self.graph(self.graph.normalise.moved(batch["IMAGE"]))
        answer = {"EMBEDDING": vector.cpu().numpy()}
        if "DENSE" in batch and batch["DENSE"].any():
            answer["FEATURES"] = features.cpu().numpy()
        return answer
