"""Denoising Vision Transformers: the backbone by its timm name, the denoiser by the file's shapes."""

from __future__ import annotations

import torch

from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    dvt = architecture("dvt")
    config = _config(golden)
    network = load(dvt.network(config), dvt.translate(golden.weights(), config))
    found: dict[str, torch.Tensor] = {}
    backbone = network.vit.model
    taps = {f"block_{i}": block for i, block in enumerate(backbone.blocks)}
    for name, module in (taps | {"patch_embed": backbone.patch_embed}).items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    token, features = network.vit(golden.input("image"))
    clean = network.clean(features)
    found |= {
        "class_token": token,
        "original_feats": features,
        "denoised_feats": clean.permute(0, 3, 1, 2),
    }
    return {name: output.contiguous() for name, output in found.items()}


def _config(golden: Golden) -> dict[str, object]:
    published = golden.config
    names = {name for name, _ in golden.state}
    depth = published.get("num_blocks", 1)
    if not any(name.startswith("denoiser.") for name in names):
        depth = 0
    return {
        "backbone": published["vit"],
        "changes": {},
        "stride": published.get("stride"),
        "depth": depth,
        "table": _table(golden) if depth and "pos_embed" in names else None,
    }


def _table(golden: Golden) -> tuple[int, int]:
    return golden.config["noise_map_height"], golden.config["noise_map_width"]
