"""DuoFormer: built from the configuration and the shapes in the file, loaded by the official names."""

from __future__ import annotations

import math

import torch

from models.classification.duoformer import PATCH, DuoFormer
from models.registry import architecture
from tests.fidelity.golden import Golden, load

RESNET = "resnet_projector"


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    duoformer = architecture("duoformer")
    config = _config(golden)
    network = load(
        duoformer.network(config), duoformer.translate({"model": golden.weights()}, config)
    )
    assert isinstance(network, DuoFormer)
    transformer = network.vision_transformer
    found: dict[str, torch.Tensor] = {}

    def per_patch(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (-1, golden.config["num_patches"]))

    for i, block in enumerate(transformer.scaleBlocks):
        block.register_forward_hook(
            lambda _module, _inputs, output, name=f"scale{i}": found.__setitem__(
                name, per_patch(output)
            )
        )
    for i, block in enumerate(transformer.blocks):
        block.register_forward_hook(
            lambda _module, _inputs, output, name=f"patch{i}": found.__setitem__(name, output)
        )
    transformer.scaleBlocks.register_forward_pre_hook(
        lambda _module, inputs: found.__setitem__("tokens", per_patch(inputs[0]))
    )
    if network.channel_token is None:
        network.chann_proj_all.register_forward_hook(
            lambda _module, _inputs, output: found.__setitem__("scale_token", output)
        )
    found["logits"] = network(golden.input("image"))
    last = len(transformer.blocks) - 1
    found |= {"scale_last": found[f"scale{last}"], "patch_last": found[f"patch{last}"]}
    return {name: output.contiguous() for name, output in found.items()}


def _config(golden: Golden) -> dict[str, object]:
    given = golden.config
    names = {name for name, _ in golden.state}
    return {
        "image_size": PATCH * math.isqrt(given["num_patches"]),
        "block": "bottleneck" if f"{RESNET}.4.0.conv3.weight" in names else "basic",
        "depths": [golden.count(rf"{RESNET}\.{stage}\.(\d+)\.") for stage in range(4, 8)],
        "width": golden.shape(f"{RESNET}.0.weight")[0],
        "scales": given["num_layers"],
        "scale_token": given["scale_token"],
        "dim": given["embed_dim"],
        "depth": given["depth"],
        "heads": given["num_heads"],
        "mlp_ratio": given["mlp_ratio"],
        "num_classes": given["num_classes"],
    }
