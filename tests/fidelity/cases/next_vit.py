"""Next-ViT: built from the file's configuration and shapes, loaded by the official names.

Single modules are probed with inputs of their own, named after the output that they give.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    next_vit = architecture("next-vit")
    config = _config(golden)
    network = load(
        next_vit.network(config),
        next_vit.translate({"model": golden.weights()}, config),
    )
    found: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
        for name, module in _taps(network).items()
        if name in golden.outputs
    ]
    if "image" in golden.inputs:
        found["logits"] = network(golden.input("image"))
    for hook in hooks:
        hook.remove()
    blocks = [block for stage in network.stages for block in stage.blocks]
    for name in golden.inputs:
        probe = golden.input(name)
        match name.removeprefix("probe_"):
            case "tail":
                found["tail_logits"] = network.tail(probe)
            case "image":
                pass
            case part:
                found[part] = blocks[_probed(golden, config, part)](probe)
    return {name: found[name] for name in golden.outputs}


def _config(golden: Golden) -> dict[str, object]:
    published = golden.config
    names = {name for name, _ in golden.state}
    depths = tuple(published["depths"])
    ends = [sum(depths[: i + 1]) - 1 for i in range(len(depths))]
    starts = [end - depth + 1 for end, depth in zip(ends, depths, strict=True)]
    width = "features.{}.mlp.conv2.weight"
    return {
        "stem": tuple(published["stem_chs"]),
        "depths": depths,
        "widths": tuple(golden.shape(width.format(start))[0] for start in starts),
        "mixed_widths": tuple(
            golden.shape(width.format(end))[0]
            if f"features.{end}.e_mhsa.q.weight" in names
            else None
            for end in ends
        ),
        "strides": tuple(published["strides"]),
        "reductions": tuple(published["sr_ratios"]),
        "head_width": published["head_dim"],
        "attention_share": published["mix_block_ratio"],
        "num_classes": golden.shape("proj_head.0.weight")[0],
    }


def _probed(golden: Golden, config: dict[str, object], part: str) -> int:
    """Return which block of the flat list a probe goes to: as the notes say, or as the small network's do."""
    if noted := re.search(rf"\b{part} = features\.(\d+)", golden.notes):
        return int(noted[1])
    first, second, third, fourth = config["depths"]
    return {
        "ncb": first + second,
        "ntb3": first + second + third - 1,
        "ntb4": first + second + third + fourth - 1,
    }[part]


def _taps(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose outputs for the picture are recorded, by the names of the record."""
    taps: dict[str, nn.Module] = {"stem": network.stem, "first_ntb": network.stages[1].blocks[-1]}
    return taps | {f"stage{number}": stage for number, stage in enumerate(network.stages, start=1)}
