"""A network of clips that ends in logits, served as a classifier of videos."""

from __future__ import annotations

import torch
from torch import nn

from models.layers.pixels import Normalisation
from models.layers.precision import lowered
from models.serving import Arrays, Device, InvalidInput, Predictor
from service.triton.cards import Card


class VideoClassifier(Predictor):
    """FRAMES `uint8` [B, T, 3, H, W] to SCORES float32 [B, C]: probabilities by the card's activation.

    The network takes clips as [B, 3, T, H, W].
    """

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        assert card.image is not None
        assert card.clip is not None
        self._frames = card.clip.frames
        self._network = lowered(network, device)
        self._normalise = Normalisation(card.image, device)
        self._device = device
        self._sigmoid = card.activation == "sigmoid"

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Arrays:
        frames = batch["FRAMES"]
        if frames.ndim != 5 or frames.shape[1] != self._frames:
            raise InvalidInput(
                f"a clip of shape {list(frames.shape[1:])}; this model takes {self._frames} frames"
            )
        # Pictures first: they are what is normalised.
        pictures = self._normalise(frames.reshape(-1, *frames.shape[2:]))
        clips = pictures.unflatten(0, frames.shape[:2]).transpose(1, 2).contiguous()
        with self._device.autocast():
            logits = self._network(clips)
        scores = logits.float().sigmoid() if self._sigmoid else logits.float().softmax(-1)
        return {"SCORES": scores.cpu().numpy()}
