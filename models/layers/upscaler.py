"""A network that makes pictures larger, served one tile at a time.

A request is a tile: at most `LONGEST_SIDE` pixels on a side, which bounds the memory whatever the size of a
picture. The service cuts larger pictures into tiles and puts the results together
(`service/tasks/upscale/tiles.py`), so that a large one neither holds up small ones nor goes unreported on its way:
between any two of its tiles those of others may come.
"""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
import torch
from torch import nn

from models.layers.precision import convert
from models.serving import Arrays, Device, InvalidInput, Predictor
from service.triton.cards import Card, ImageInput, Parameter

# Of a tile with the pixels around it that it may be given to see.
LONGEST_SIDE = 640
_LARGEST_TILE, _LARGEST_OVERLAP = 512, 64
# How many pixels go through the network at a time; a single tile may have more.
_PIXELS = 320 * 320


class Upscales(Protocol):
    """What a network must offer to be an upscaler: [B, 3, H, W] in 0..1 to [B, 3, `scale` H, `scale` W].

    H and W are multiples of `window`.
    """

    scale: int
    window: int

    def __call__(self, image: torch.Tensor) -> torch.Tensor: ...


def one_tile(mean: tuple[float, ...]) -> ImageInput:
    """Return the card's input of an upscaler that subtracts `mean`."""
    return ImageInput(resize="none", max_side=LONGEST_SIDE, mean=mean, std=(1.0, 1.0, 1.0))


def parameters(window: int) -> dict[str, Parameter]:
    """Return the card's parameters of an upscaler whose attention has windows of `window` pixels.

    Tiles begin where windows do. The authors' own size of tiles is 512; smaller ones need less memory.
    """
    return {
        "tiling": Parameter(
            type="string",
            default="context",
            choices=("context", "average"),
            description="How large pictures are put together from tiles. `context`: each tile is computed with "
            "`overlap` pixels around it, which are cut away. `average`: tiles overlap by `overlap` pixels, of which the "
            "mean is taken.",
        ),
        "tile": Parameter(
            type="integer",
            default=256,
            minimum=2 * window,
            maximum=_LARGEST_TILE,
            multiple_of=window,
            description="Side of a tile in pixels of the picture sent; smaller pictures are not cut.",
        ),
        "overlap": Parameter(
            type="integer",
            default=32,
            minimum=0,
            maximum=_LARGEST_OVERLAP,
            multiple_of=window,
            description="Pixels around a tile, or common to two; less than `tile`.",
        ),
    }


class Upscaler(Predictor):
    """IMAGE `uint8` [B, 3, H, W] to IMAGE `uint8` [B, 3, sH, sW], with UNROUNDED also to LEVELS float32 [B, 3, sH, sW].

    H and W are 1 to `LONGEST_SIDE`; pictures are continued by reflection to whole windows, and what belongs to the
    continuation is cut off. LEVELS are in units of 8 bits, neither rounded nor bounded, for tiles to be averaged.
    """

    def __init__(self, network: nn.Module, card: Card, device: Device) -> None:
        assert card.image is not None
        self._network = convert(network, device)
        self._longest = card.image.max_side
        self._device = device

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Arrays:
        pixels = batch["IMAGE"]
        height, width = pixels.shape[2:]
        if not 1 <= min(height, width) <= max(height, width) <= self._longest:
            raise InvalidInput(
                f"a tile of {width} x {height} pixels; this model takes sides of 1 to {self._longest}"
            )
        network = cast(Upscales, self._network)
        missing = [(0, -side % network.window) for side in (height, width)]
        # NumPy goes on reflecting where there are fewer pixels than missing ones.
        whole = torch.from_numpy(np.pad(pixels, ((0, 0), (0, 0), *missing), mode="reflect"))
        at_a_time = max(1, _PIXELS // (whole.shape[2] * whole.shape[3]))
        levels = torch.cat([self._levels(part) for part in whole.split(at_a_time)])
        levels = levels[..., : height * network.scale, : width * network.scale]
        answer = {"IMAGE": levels.clamp(0, 255).round().to(torch.uint8).numpy()}
        return answer | ({"LEVELS": levels.numpy()} if "UNROUNDED" in batch else {})

    def _levels(self, pixels: torch.Tensor) -> torch.Tensor:
        image = pixels.to(self._device.torch).float() / 255
        with self._device.autocast():
            made = self._network(image)
        return (made.float() * 255).cpu()
