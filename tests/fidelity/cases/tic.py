"""TiC: the published layer, built from the file's configuration; its network is not public."""

from __future__ import annotations

import torch

from models.classification.tic import MSAConv2d
from tests.fidelity.golden import Golden, load

# Recorded name: module of the layer.
TAPS = {"qkv": "qkv_conv", "scores": "scores", "attention": "softmax", "aggregated": "sum"}


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    config = golden.config
    layer = load(
        MSAConv2d(
            config["input_channel"],
            config["output_channel"],
            config["kernel_size"],
            stride=config.get("stride", 1),
            padding=config.get("padding", 1),
            dilation=config.get("dilation", 1),
            bias=config.get("bias", False),
        ),
        golden.weights(),
    )
    found: dict[str, torch.Tensor] = {}
    for name, module in TAPS.items():
        layer.get_submodule(module).register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    (features,) = golden.inputs
    found["output"] = layer(golden.input(features))
    return {name: output.contiguous() for name, output in found.items()}
