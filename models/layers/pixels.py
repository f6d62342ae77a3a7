"""From `uint8` pictures to what a network's first layer takes."""

from __future__ import annotations

import numpy as np
import torch

from models.layers.precision import memory_format
from models.serving import Device, InvalidInput
from service.triton.cards import ImageInput


class Normalisation:
    """Turns `uint8` [B, 3, height, width], of the card's size where that fixes one, into float32 (pixel / 255 - mean) / std on the device.

    The result lies in the device's preferred memory format.
    """

    def __init__(self, image: ImageInput, device: Device) -> None:
        self._size = (image.height, image.width) if image.is_fixed else None
        self._device = device.torch
        self._format = memory_format(device)
        std = torch.tensor(image.std).view(-1, 1, 1)
        self._gain = (1.0 / (255.0 * std)).to(self._device)
        self._offset = (-torch.tensor(image.mean).view(-1, 1, 1) / std).to(self._device)

    def __call__(self, pixels: np.ndarray) -> torch.Tensor:
        """Raises InvalidInput if the pictures are not of the card's size."""
        return self.scaled(self.moved(pixels))

    def moved(self, pixels: np.ndarray) -> torch.Tensor:
        """Return the `uint8` pictures on the device. Raises InvalidInput if they are not of the card's size."""
        if pixels.shape[1] != 3 or self._size not in (None, pixels.shape[2:]):
            height, width = self._size or ("height", "width")
            raise InvalidInput(
                f"pixels of shape {list(pixels.shape[1:])}; this model takes [3, {height}, {width}]"
            )
        # A copy: what Triton hands over is read-only.
        moved = torch.tensor(pixels).to(self._device)
        return moved.contiguous(memory_format=self._format)

    def scaled(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the network's first layer takes of pictures on the device."""
        return torch.addcmul(self._offset, pixels.float(), self._gain)
