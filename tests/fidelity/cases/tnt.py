"""Transformer in Transformer: built from the file's configuration and shapes, loaded by the official names."""

from __future__ import annotations

import torch
from torch import nn

from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    tnt = architecture("tnt")
    config = _config(golden)
    network = load(tnt.network(config), tnt.translate(golden.weights(), config))
    found: dict[str, torch.Tensor] = {}

    def embedded(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found["outer_embed"] = inputs[1]

    def words(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        found["inner_embed"] = output.flatten(2).transpose(1, 2)

    # The words before their positions are added, and the patches with theirs.
    network.pixel_embed.proj.register_forward_hook(words)
    network.blocks[0].register_forward_pre_hook(embedded)
    for i, block in enumerate(network.blocks):
        block.register_forward_hook(
            lambda _module, _inputs, output, i=i: found.update(
                {f"block{i}_inner": output[0], f"block{i}_outer": output[1]}
            )
        )
    found["logits"] = network(golden.input("image"))
    return {name: found[name].contiguous() for name in golden.outputs}


def _config(golden: Golden) -> dict[str, object]:
    published = golden.config
    return {
        "image_size": published.get("img_size", golden.input("image").shape[-1]),
        "patch_size": published["patch_size"],
        "inner_stride": published["inner_stride"],
        "dim": golden.shape("cls_token")[-1],
        "inner_dim": golden.shape("inner_pos")[-1],
        "depth": golden.count(r"blocks\.(\d+)\."),
        "heads": published["outer_num_heads"],
        "inner_heads": published["inner_num_heads"],
        "mlp_ratio": published["mlp_ratio"],
        "qkv_bias": published["qkv_bias"],
        "norm_eps": published.get("norm_eps", 1e-5),
        "num_classes": golden.shape("head.weight")[0],
    }
