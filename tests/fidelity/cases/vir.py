"""ViR: one set of weights in its three modes, built from the file's configuration and shapes."""

from __future__ import annotations

import re

import torch

from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    vir = architecture("vir")
    config = _config(golden)
    network = load(vir.network(config), vir.translate({"state_dict": golden.weights()}, config))
    image = golden.input("pixel_values")
    found: dict[str, torch.Tensor] = {}
    for name, record in golden.outputs.items():
        if linear := re.fullmatch(r"tokens_(recurrent|chunkwise)(\d*)", name):
            mode, chunk = linear.groups()
            tokens = network.tokens(image, mode, int(chunk) if chunk else None)
            # The reference counts tokens as if patches were 16 wide, and may stop before the end.
            found[name] = tokens[:, : record.shape[1]].contiguous()

    taps = {"patch_embed": network.patch_embed, "tokens": network.norm}
    for i, block in enumerate(network.blocks):
        taps |= {f"block{i}": block, f"block{i}.retention": block.retention}
    for name, module in taps.items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    found["logits"] = network(image, "parallel")
    return found


def _config(golden: Golden) -> dict[str, object]:
    given = golden.config
    dim, _, patch, _ = golden.shape("patch_embed.proj.weight")
    height, width = golden.inputs["pixel_values"]["shape"][-2:]
    names = {name for name, _ in golden.state}
    return {
        "image_size": (height, width),
        "patch_size": patch,
        "dim": dim,
        "depth": golden.count(r"blocks\.(\d+)\."),
        "heads": given.get("num_heads", 12),
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in names else None,
        "mlp_ratio": golden.shape("blocks.0.mlp.fc1.weight")[0] / dim,
        "pool": given.get("global_pool", "token_last"),
        "class_token": "cls_token" in names,
        "class_position": not given.get("no_embed_class", True),
        "bidirectional": given.get("encode_mode") == "bidirectional",
        "num_classes": golden.shape("head.weight")[0],
    }
