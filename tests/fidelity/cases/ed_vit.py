"""ED-ViT's stand-in: sub-models and fusion of the file's shapes, whole and after structured pruning."""

from __future__ import annotations

import re

import torch
from torch import nn

from models.acceleration.ed_vit_network import SplitConfig, SplitViT, reduced
from tests.fidelity.golden import Golden, load

_HEAD_WIDTH = 64  # where the configuration does not say how many heads there are


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    config = _config(golden)
    network = load(SplitViT(config), golden.weights())
    image = golden.input("image")
    found = _run(network, image)
    if "pruned_heads_kept" in golden.config:
        hidden = network.sub_models.backbones[0].blocks[0].mlp.fc1.out_features
        units = _units(golden.config["pruned_neurons_kept"], hidden)
        heads = golden.config["pruned_heads_kept"]
        network.sub_models.backbones = nn.ModuleList(
            reduced(backbone, heads, units) for backbone in network.sub_models.backbones
        )
        found |= {f"pruned_{name}": value for name, value in _run(network, image).items()}
    return found


def _run(network: SplitViT, image: torch.Tensor) -> dict[str, torch.Tensor]:
    parts = network.sub_models(image)
    found = {"logits": network.fusion(parts)}
    for number, part in enumerate(parts):
        found |= {f"features_{number}": part[:, 0], f"dist_features_{number}": part[:, -1]}
    return found


def _config(golden: Golden) -> SplitConfig:
    first = "sub_models.backbones.0"
    names = {name for name, _ in golden.state}
    width, _, patch_size, _ = golden.shape(f"{first}.patch_embed.proj.weight")
    heads = re.search(r"(\d+) heads", str(golden.config.get("sub_model", "")))
    mlp = "fusion.cls_mlp.weight"
    return SplitConfig(
        parts=golden.count(r"sub_models\.backbones\.(\d+)\."),
        num_classes=golden.shape("fusion.cls_classifier.weight")[0],
        hidden=golden.shape(mlp)[0] if mlp in names else None,
        distilled=f"{first}.dist_token" in names,
        image_size=golden.input("image").shape[-1],
        patch_size=patch_size,
        embed_dim=width,
        depth=golden.count(re.escape(first) + r"\.blocks\.(\d+)\."),
        num_heads=int(heads[1]) if heads else width // _HEAD_WIDTH,
        mlp_ratio=golden.shape(f"{first}.blocks.0.mlp.fc1.weight")[0] / width,
    )


def _units(kept: str | list[int], hidden: int) -> list[int]:
    """Return the units that `kept` lists or describes as `index % A == B`."""
    if not isinstance(kept, str):
        return kept
    rule = re.fullmatch(r"index % (\d+) == (\d+)", kept)
    if rule is None:
        raise ValueError(f"unknown rule {kept!r}")
    return [index for index in range(hidden) if index % int(rule[1]) == int(rule[2])]
