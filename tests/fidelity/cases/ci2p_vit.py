"""CI2P-ViT: built from the shapes and the heads in the file, loaded by the official names."""

from __future__ import annotations

from itertools import groupby

import torch

from models.classification.ci2p_vit import CI2PViT
from models.registry import architecture
from tests.fidelity.golden import Golden, load

EMBEDDING = "backbone.to_patch_embedding.compressai"
LAYERS = "backbone.transformer.layers"


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    ci2p = architecture("ci2p-vit")
    config = _config(golden)
    network = load(ci2p.network(config), ci2p.translate({"state_dict": golden.weights()}, config))
    assert isinstance(network, CI2PViT)
    embedding, transformer = network.backbone.to_patch_embedding, network.backbone.transformer
    taps = {
        "latent": embedding.compressai,
        "reshape0": embedding.patchReshape[0],
        "reshape1": embedding.patchReshape[1],
        "tokens": transformer,
    }
    taps |= {f"gdn{i}": embedding.compressai[2 * i - 1] for i in (1, 2, 3)}
    taps |= {f"layer{i}": layer for i, layer in enumerate(transformer.layers)}
    found: dict[str, torch.Tensor] = {}
    for name, module in taps.items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    network.head.register_forward_pre_hook(
        lambda _module, inputs: found.__setitem__("pooled", inputs[0])
    )
    found["logits"] = network(golden.input("pixel_values"))
    return {name: output.contiguous() for name, output in found.items()}


def _config(golden: Golden) -> dict[str, object]:
    widths = [
        golden.shape(f"{LAYERS}.{i}.ffn.layers.0.0.weight")
        for i in range(golden.count(rf"{LAYERS}\.(\d+)\."))
    ]
    arch = golden.config["arch"]
    # Narrow layers, of the dual-scale network, have heads of 64.
    stages = [
        (len(list(layers)), dim, arch["num_heads"] if dim == arch["embed_dims"] else dim // 64, ffn)
        for (ffn, dim), layers in groupby(widths)
    ]
    return {
        "encoder_dim": golden.shape(f"{EMBEDDING}.0.weight")[0],
        "latent": golden.shape(f"{EMBEDDING}.6.weight")[0],
        "stages": stages,
        "num_classes": golden.shape("head.fc.weight")[0],
    }
