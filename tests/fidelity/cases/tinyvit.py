"""TinyViT: built from the file's configuration and shapes, loaded by the official names."""

from __future__ import annotations

import torch
from torch import nn

from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    tinyvit = architecture("tinyvit")
    config = _config(golden)
    network = load(
        tinyvit.network(config),
        tinyvit.translate({"model": golden.weights()}, config),
    )
    found: dict[str, torch.Tensor] = {}
    for name, module in _taps(network).items():
        if name in golden.outputs:
            module.register_forward_hook(
                lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
            )
    found["logits"] = network(golden.input("image"))
    return {
        name: _as_recorded(output, golden.outputs[name].shape) for name, output in found.items()
    }


def _as_recorded(output: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a map as the sequence of tokens that the reference makes of it, where it does."""
    if output.dim() != 4 or len(shape) != 3:
        return output.contiguous()
    if output.shape[-1] == shape[-1] and output.shape[1] * output.shape[2] == shape[1]:
        return output.flatten(1, 2)  # blocks: B, H, W, C
    return output.flatten(2).transpose(1, 2).contiguous()  # stages: B, C, H, W


def _config(golden: Golden) -> dict[str, object]:
    published = golden.config
    stages = range(golden.count(r"layers\.(\d+)\."))
    return {
        "dims": tuple(published["embed_dims"]),
        "depths": tuple(golden.count(rf"layers\.{i}\.blocks\.(\d+)\.") for i in stages),
        "heads": tuple(published["num_heads"]),
        "windows": tuple(published["window_sizes"]),
        "mlp_ratio": published.get("mlp_ratio", 4.0),
        "expansion": published.get("mbconv_expand_ratio", 4.0),
        "kernel": published.get("local_conv_size", 3),
        "num_classes": golden.shape("head.weight")[0],
    }


def _taps(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose outputs are recorded, by the names of the record."""
    stages = list(network.stages)
    taps: dict[str, nn.Module] = {
        "patch_embed": network.patch_embed,
        "norm_head": network.head.norm,
    }
    for number, stage in enumerate(stages, start=1):
        taps |= {f"stage{number}_block{i}": block for i, block in enumerate(stage.blocks)}
        # A stage of the reference ends with the halving that starts the next one here.
        taps[f"stage{number}"] = stages[number].downsample if number < len(stages) else stage
    return taps
