"""A network of clips that ends in logits, served as a classifier of videos."""

from __future__ import annotations

import torch
from torch import nn

from models.layers.graph import FeedForward, Graph
from models.layers.pixels import Normalisation
from models.layers.precision import lowered
from models.serving import Arrays, Device, InvalidInput
from service.triton.cards import Card


class ClipScores(Graph):
    """FRAMES [B, T, 3, H, W] to SCORES [B, C]; the network takes clips as [B, 3, T, H, W]."""

    input = "FRAMES"
    outputs = ("SCORES",)

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        super().__init__()
        assert card.image is not None
        self.network = lowered(network, device)
        self.normalise = Normalisation(card.image, device)
        self.device = device
        self._sigmoid = card.activation == "sigmoid"

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Pictures first: they are what is normalised.
        pictures = self.normalise.scaled(pixels.flatten(0, 1))
        clips = pictures.unflatten(0, (-1, pixels.shape[1])).transpose(1, 2).contiguous()
        with self.device.autocast():
            logits = self.network(clips).float()
        return (logits.sigmoid() if self._sigmoid else logits.softmax(-1),)


class VideoClassifier(FeedForward):
    """FRAMES `uint8` [B, T, 3, H, W] to SCORES float32 [B, C]: probabilities by the card's activation."""

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        assert card.clip is not None
        self._frames = card.clip.frames
        self.graph: ClipScores = ClipScores(network, card, device)

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Arrays:
        frames = batch["FRAMES"]
        if frames.ndim != 5 or frames.shape[1] != self._frames:
            raise InvalidInput(
                f"a clip of shape {list(frames.shape[1:])}; this model takes {self._frames} frames"
            )
        pictures = self.graph.normalise.moved(frames.reshape(-1, *frames.shape[2:]))
        (scores,) = self.graph(pictures.unflatten(0, frames.shape[:2]))
        return {"SCORES": scores.cpu().numpy()}
