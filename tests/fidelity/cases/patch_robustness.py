"""Patch robustness: timm's network at each of the file's temperatures, without a cell, and the rollout."""

from __future__ import annotations

import timm
import torch

from models.acceleration.patch_robustness_network import (
    Normalised,
    cell_mask,
    rollout,
    with_temperature,
)
from models.layers.vit_attention import attention_maps
from tests.fidelity.golden import Golden, load

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    given = golden.config
    backbone = timm.create_model(given["arch"], num_classes=golden.shape("head.weight")[0])
    network = Normalised(load(backbone, golden.weights()), _MEAN, _STD)
    image = golden.input("image")
    found = {
        f"logits_t{temperature:g}".replace(".", "_"): with_temperature(network, temperature)(image)
        for temperature in given["temperatures"]
    }
    mask = cell_mask(image.shape[-1], given["patch_grid"], given["patch_index"])
    found["logits_patch_removed"] = network(image * (1 - mask))
    maps = attention_maps(network, image)
    found["attention_last_class_row"] = maps[-1][:, :, 0].contiguous()
    first = [weights[:1] for weights in maps]
    found["rollout"] = rollout(first, given["discard_ratio"], given["head_fusion"])[0]
    return found
