"""ConViT as it is served: built from the file's configuration and shapes, which name things as the authors do."""

from __future__ import annotations

import torch
from torch import nn

from models.classification.convit import settle
from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    convit = architecture("convit")
    config = _config(golden)
    network = settle(
        load(
            convit.network(config),
            convit.translate(golden.weights(), config),
        )
    )
    found: dict[str, torch.Tensor] = {}
    for name, module in _taps(network).items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    found["logits"] = network(golden.input("image"))
    return found


def _config(golden: Golden) -> dict[str, object]:
    published = golden.config
    width, _, _, patch_size = golden.shape("patch_embed.proj.weight")
    names = {name for name, _ in golden.state}
    return {
        "image_size": published.get("img_size", golden.input("image").shape[-1]),
        "patch_size": patch_size,
        "heads": published["num_heads"],
        "head_width": width // published["num_heads"],
        "depth": golden.count(r"blocks\.(\d+)\."),
        "local_blocks": golden.count(r"blocks\.(\d+)\.attn\.gating_param$"),
        "mlp_ratio": published.get("mlp_ratio", 4.0),
        "qkv_bias": published.get("qkv_bias", False),
        "norm_eps": published.get("norm_eps", 1e-6),
        "position_table": "pos_embed" in names,
        "num_classes": golden.shape("head.weight")[0],
    }


def _taps(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose outputs are recorded, by the names of the record."""
    taps: dict[str, nn.Module] = {"patch_embed": network.patch_embed, "norm": network.norm}
    for number, block in enumerate(network.blocks):
        taps |= {f"block{number}": block, f"gpsa{number}": block.attn, f"attn{number}": block.attn}
    return taps
