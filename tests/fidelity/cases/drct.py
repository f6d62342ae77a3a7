"""DRCT: built from the file's configuration and shapes; odd sizes through the service's own tiles."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from models.registry import architecture
from models.super_resolution._drct_network import PointwiseConv
from service.tasks.upscale.tiles import Mosaic, mirrored, overlapping
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    drct = architecture("drct")
    config = _config(golden)
    network = load(drct.network(config), drct.translate({"params_ema": golden.weights()}, config))
    found: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda module, _inputs, output, name=name: found.__setitem__(
                name, _as_recorded(module, output)
            )
        )
        for name, module in network.named_modules()
        if name in golden.outputs
    ]
    found["sr"] = network(golden.input("image"))
    for hook in hooks:
        hook.remove()
    if "odd" in golden.inputs:
        odd = golden.input("odd")
        height, width = odd.shape[2:]
        found["sr_odd_flip_pad"] = _upscaled(network, odd, max(height, width) + network.window, 0)
        # The sizes are told in words only.
        told = re.search(r"(\d+)x\1 tiles with overlap (\d+)", golden.notes)
        tile, overlap = map(int, told.groups()) if told else (32, 16)
        found["sr_odd_tiled"] = _upscaled(network, odd, tile, overlap)
    return found


def _config(golden: Golden) -> dict[str, object]:
    published = golden.config
    return {
        "scale": published["upscale"],
        "dim": golden.shape("conv_first.weight")[0],
        "heads": tuple(published["num_heads"]),
        "window": published["window_size"],
        "growth": golden.shape("layers.0.adjust1.weight")[0],
        "mlp_ratio": published["mlp_ratio"],
        "image_size": published["img_size"],
        "image_range": published["img_range"],
    }


def _as_recorded(module: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """Maps with the channels last are recorded as sequences of tokens, those of a convolution as [B, C, H, W]."""
    if isinstance(module, PointwiseConv):
        return output.permute(0, 3, 1, 2).contiguous()
    return output if isinstance(module, nn.Conv2d | nn.Sequential) else output.flatten(1, 2)


def _upscaled(
    network: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, tile: int, overlap: int
) -> torch.Tensor:
    """Run pictures [B, 3, H, W] in overlapping tiles, continued by their mirror images."""
    scale, window = network.scale, network.window
    height, width = (side * scale for side in image.shape[2:])
    found = []
    for planes in image.numpy():
        planes = mirrored(planes, window)
        mosaic, rows = Mosaic(height, width), []
        for part in overlapping(*planes.shape[1:], tile, overlap):
            result = network(torch.from_numpy(part.cut(planes))[None])[0].numpy()
            rows.append(mosaic.add(part.rows.first * scale, part.columns.first * scale, result))
        found.append(np.concatenate([*rows, mosaic.rest()], axis=1))
    return torch.from_numpy(np.stack(found))
