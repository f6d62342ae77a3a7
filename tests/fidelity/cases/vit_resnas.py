"""ViT-ResNAS: built from the file's `network_def` and picture size, loaded by the official names."""

from __future__ import annotations

import torch

from models.classification.vit_resnas import SpatialReduction
from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    resnas = architecture("vit-resnas")
    config = {
        "network_def": golden.config["network_def"],
        "image_size": golden.inputs["pixel_values"]["shape"][-1],
        "patch_size": golden.config.get("patch_size", 14),
        "num_classes": golden.shape("cls_head.weight")[0],
        "distilled": golden.shape("tokens")[1] == 2,
    }
    network = load(resnas.network(config), resnas.translate({"model": golden.weights()}, config))
    taps: dict[str, torch.nn.Module] = {"patch_embed": network.patch_embed}
    stage = 1
    for i, block in enumerate(network.blocks):
        taps[f"block{i}"] = block
        if isinstance(block, SpatialReduction):
            taps[f"reduction{stage}"] = block
            stage += 1
        else:
            taps[f"stage{stage}"] = block  # the last block of a stage stays
    found: dict[str, torch.Tensor] = {}
    for name, module in taps.items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    logits = network.heads(golden.input("pixel_values"))
    return found | dict(zip(("logits", "logits_distilled"), logits, strict=False))
