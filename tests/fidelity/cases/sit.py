"""SiT of 2021 and 2022, pretraining and fine-tuning forms: built from the shapes in the file."""

from __future__ import annotations

import torch
from torch import nn

from models.registry import architecture
from tests.fidelity.golden import Golden, load

Outputs = dict[str, torch.Tensor]


def outputs(golden: Golden) -> Outputs:
    sit = architecture("sit")
    config = _config(golden)
    network = load(sit.network(config), sit.translate({"model": golden.weights()}, config))
    found: Outputs = {}
    encoder = network.backbone if hasattr(network, "backbone") else network
    _record(found, {f"block{i}": block for i, block in enumerate(encoder.blocks)})
    _record(found, {"tokens": encoder.norm})
    image = golden.input("image")
    if config["form"] == 2022:
        found["position"] = encoder.positions(*image.shape[-2:])
    if config["head"] == "classes":
        found["logits"] = network(image)
    elif config["form"] == 2021 and config["head"] == "pretraining":
        found["rotation_logits"], found["contrastive"], found["reconstruction"] = network(image)
    elif config["head"] == "pretraining":
        _record(found, {"reconstruction_mlp": network.head_recons.mlp})
        found["projection"], found["reconstruction"] = network(image)
        found["reconstruction_mlp"] = found["reconstruction_mlp"].flatten(1, 2)
    else:
        network(image)
    return {name: output.contiguous() for name, output in found.items()}


def _record(found: Outputs, modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )


def _config(golden: Golden) -> dict[str, object]:
    names = {name for name, _ in golden.state}
    two_tokens = "rot_token" in names
    prefix = "backbone." if "backbone.pos_embed" in names else ""
    _, entries, dim = golden.shape(f"{prefix}pos_embed")
    patch_size = golden.shape(f"{prefix}patch_embed.proj.weight")[-1]
    side = round((entries - (2 if two_tokens else 1)) ** 0.5)
    common: dict[str, object] = {
        "form": 2021 if two_tokens else 2022,
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "dim": dim,
        "depth": golden.count(rf"{prefix}blocks\.(\d+)\."),
        "heads": golden.config.get("num_heads", dim // 64),
    }
    if two_tokens:
        return common | _head_of_2021(golden, names)
    if "head_recons.convTrans.weight" in names:
        return common | {
            "head": "pretraining",
            "hidden_dim": golden.shape("head.mlp.0.weight")[0],
            "out_dim": golden.shape("head.mlp.6.weight")[0],
        }
    if "head.2.weight" in names:
        return common | {"head": "classes", "num_classes": golden.shape("head.2.weight")[0]}
    return common | {"head": None}


def _head_of_2021(golden: Golden, names: set[str]) -> dict[str, object]:
    if "rot_head.weight" not in names:
        return {"head": None}
    width = golden.shape("contrastive_head.weight")[0]
    if golden.config.get("training_mode", "SSL") == "SSL":
        return {"head": "pretraining", "out_dim": width}
    size = None
    if "pre_logits_rot.fc.weight" in names:
        size = golden.shape("pre_logits_rot.fc.weight")[0]
    return {"head": "classes", "num_classes": width, "representation_size": size}
