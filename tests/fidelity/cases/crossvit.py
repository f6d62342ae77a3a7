"""CrossViT: built from the file's configuration and shapes, loaded by the official names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models.registry import architecture
from tests.fidelity.golden import Golden, load

BRANCHES = ("small", "large")


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    crossvit = architecture("crossvit")
    config = _config(golden)
    network = load(
        crossvit.network(config),
        crossvit.translate(golden.weights(), config),
    )
    found: dict[str, torch.Tensor] = {}
    _record(network, found)
    found["logits"] = network(golden.input("image"))
    return found


def _config(golden: Golden) -> dict[str, object]:
    published = golden.config
    branches = range(golden.count(r"head\.(\d+)\."))
    return {
        "image_sizes": tuple(published["img_size"]),
        "patch_sizes": tuple(published["patch_size"]),
        "dims": tuple(golden.shape(f"norm.{i}.weight")[0] for i in branches),
        "depths": published["depth"],
        "heads": tuple(published["num_heads"]),
        "mlp_ratios": tuple(published["mlp_ratio"]),
        "convolutions": any(name == "patch_embed.0.proj.0.weight" for name, _ in golden.state),
        "qkv_bias": published.get("qkv_bias", True),
        "norm_eps": published.get("norm_eps", 1e-6),
        "num_classes": golden.shape("head.0.weight")[0],
    }


def _record(network: nn.Module, found: dict[str, torch.Tensor]) -> None:
    """Store what the recorded modules give out in `found`, by the names of the record."""

    def keep(module: nn.Module, name: str) -> None:
        module.register_forward_hook(
            lambda _module, _inputs, output: found.__setitem__(name, output)
        )

    def keep_branches(module: nn.Module, name: str) -> None:
        def hook(_module: nn.Module, _inputs: Any, output: list[torch.Tensor]) -> None:
            found.update(
                {f"{name}_{b}": tokens for b, tokens in zip(BRANCHES, output, strict=True)}
            )

        module.register_forward_hook(hook)

    for index, branch in enumerate(BRANCHES):
        keep(network.patch_embed[index], f"tokens_{branch}")
        keep(network.norm[index], f"norm_{branch}")
        keep(network.head[index], f"head_{branch}")
        for number, block in enumerate(network.blocks):
            keep(block.fusion[index], f"fusion{number}_{branch}")
    for number, block in enumerate(network.blocks):
        keep_branches(block, f"block{number}")
