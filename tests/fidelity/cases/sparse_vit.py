"""Sparse-ViT: timm's network with the authors' names translated, dense and pruned."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from models.acceleration.sparse_vit_network import (
    SparseViTConfig,
    pruned,
    released_state,
    sparse_vit,
)
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    fields = {field.name for field in dataclasses.fields(SparseViTConfig)}
    given = {k: v for k, v in golden.config.items() if k in fields}
    for name in ("image_size", "patch_size"):
        given[name] = tuple(given[name])
    network = load(sparse_vit(SparseViTConfig(**given)), released_state(golden.weights()))
    image = golden.input("image")
    found: dict[str, torch.Tensor] = {}
    taps: dict[str, nn.Module] = {"encoded": network.norm}
    taps |= {f"block{number}": block for number, block in enumerate(network.blocks)}
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
        for name, module in taps.items()
    ]
    found["logits"] = network(image)
    for hook in hooks:
        hook.remove()
    if "prune_ratio" in golden.config:
        with torch.inference_mode(False):
            smaller, _ = pruned(network, golden.config["prune_ratio"])
        found["pruned_logits"] = smaller(image)
    return found
