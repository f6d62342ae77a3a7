"""GMM-ViT: built from the configuration in the file, loaded by the official names."""

from __future__ import annotations

import torch

from models.classification.gmm_vit import GMMViT
from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    gmm = architecture("gmm-vit")
    given = golden.config
    config = {
        "image_size": given["img_size"],
        "patch_size": given["patch_size"],
        "dim": given["dim"],
        "depth": given["depth"],
        "heads": given["heads"],
        "head_dim": given["dim_head"],
        "mlp_ratio": given["mlp_dim_ratio"],
        "kernels": given["num_kernals"] if given["is_GMM"] else 0,
        "num_classes": golden.shape("mlp_head.1.weight")[0],
    }
    network = load(gmm.network(config), gmm.translate(golden.weights(), config))
    assert isinstance(network, GMMViT)
    found: dict[str, torch.Tensor] = {}
    taps = {"patch_embedding": network.to_patch_embedding, "transformer": network.transformer}
    for i, (attention, feed_forward) in enumerate(network.transformer.layers):
        taps |= {f"layer{i}.attn": attention, f"layer{i}.ffn": feed_forward}
        attention.fn.attend.register_forward_pre_hook(
            lambda _module, inputs, name=f"layer{i}.scores": found.__setitem__(name, inputs[0])
        )
    for name, module in taps.items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    found["logits"] = network(golden.input("pixel_values"))
    return {name: output.contiguous() for name, output in found.items()}
