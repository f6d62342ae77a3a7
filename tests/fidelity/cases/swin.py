"""Swin Transformer: built from the file's configuration and shapes, loaded by the official names."""

from __future__ import annotations

import torch
from torch import nn

from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    swin = architecture("swin")
    config = _config(golden)
    network = load(
        swin.network(config),
        swin.translate({"model": golden.weights()}, config),
    )
    found: dict[str, torch.Tensor] = {}
    for name, module in _taps(network).items():
        if name in golden.outputs:
            module.register_forward_hook(
                lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
            )
    logits = network(golden.input("image"))
    # The record has maps as sequences of tokens: B, H, W, C -> B, H * W, C.
    return {name: output.flatten(1, 2) for name, output in found.items()} | {"logits": logits}


def _config(golden: Golden) -> dict[str, object]:
    published = golden.config
    stages = range(golden.count(r"layers\.(\d+)\."))
    table = "layers.{}.blocks.0.attn.relative_position_bias_table"
    return {
        "image_size": published.get("img_size", golden.input("image").shape[-1]),
        "patch_size": golden.shape("patch_embed.proj.weight")[-1],
        "dim": golden.shape("patch_embed.proj.weight")[0],
        "depths": tuple(golden.count(rf"layers\.{i}\.blocks\.(\d+)\.") for i in stages),
        "heads": tuple(golden.shape(table.format(i))[1] for i in stages),
        "window": published["window_size"],
        "mlp_ratio": published.get("mlp_ratio", 4.0),
        "qkv_bias": published.get("qkv_bias", True),
        "norm_eps": published.get("norm_eps", 1e-5),
        "num_classes": golden.shape("head.weight")[0],
    }


def _taps(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose outputs are recorded, by the names of the record."""
    stages = list(network.layers)
    taps: dict[str, nn.Module] = {"patch_embed": network.patch_embed, "norm": network.norm}
    for number, stage in enumerate(stages, start=1):
        for i, block in enumerate(stage.blocks):
            taps[f"stage{number}_block{i}"] = block
            taps[f"stage{number}_block{i}_shifted"] = block
        # A stage of the reference ends with the merging that starts the next one here.
        taps[f"stage{number}"] = stages[number].downsample if number < len(stages) else stage
    return taps
