"""ConvNeXt, staged and isotropic: built from the shapes in the file, loaded by the official names."""

from __future__ import annotations

import torch
from torch import nn

from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    convnext = architecture("convnext")
    config = _config(golden)
    network = load(
        convnext.network(config),
        convnext.translate({"model": golden.weights()}, config),
    )
    taps = _taps(network)
    found: dict[str, torch.Tensor] = {}
    for name, module in taps.items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    found["logits"] = network(golden.input("image"))
    return {name: output.contiguous() for name, output in found.items()}


def _config(golden: Golden) -> dict[str, object]:
    names = [name for name, _ in golden.state]
    common = {
        "layer_scale": 1.0 if any(name.endswith(".gamma") for name in names) else None,
        "num_classes": golden.shape("head.weight")[0],
    }
    if "stem.weight" in names:
        return common | {
            "depth": golden.count(r"blocks\.(\d+)\."),
            "dim": golden.shape("stem.weight")[0],
        }
    stages = range(golden.count(r"stages\.(\d+)\."))
    return common | {
        "depths": tuple(golden.count(rf"stages\.{i}\.(\d+)\.") for i in stages),
        "dims": tuple(golden.shape(f"stages.{i}.0.norm.weight")[0] for i in stages),
    }


def _taps(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose outputs are recorded, by the names of the record."""
    taps: dict[str, nn.Module] = {"stem": network.stem}
    if isinstance(network.head, nn.Linear):  # isotropic
        taps |= {f"block{i}": block for i, block in enumerate(network.blocks)}
        return taps | {"blocks": network.blocks, "features": network.norm}
    for number, stage in enumerate(network.stages, start=1):
        taps |= {f"stage{number}_block{i}": block for i, block in enumerate(stage.blocks)}
        taps[f"stage{number}"] = stage
    return taps | {"features": network.head.flatten}
