"""ShiftAddViT: pyramids read off the state's names and shapes, with or without experts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    shiftaddvit = architecture("shiftaddvit")
    config = _config(golden)
    network = load(
        shiftaddvit.network(config),
        shiftaddvit.translate({"model": golden.weights()}, config),
    )
    found: dict[str, torch.Tensor] = {}
    for name, module in _taps(network, config["depths"]).items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(
                name, output[0] if isinstance(output, tuple) else output
            )
        )
    found["logits"] = network(golden.input("image"))
    return {name: output.contiguous() for name, output in found.items()}


def _config(golden: Golden) -> dict[str, Any]:
    shapes = dict(golden.state)
    stages = (1, 2, 3, 4)
    dims = [shapes[f"patch_embed{i}.proj.weight"][0] for i in stages]
    heads = [shapes[f"block{i}.0.attn.dconv.weight"][0] for i in stages[:-1]]
    hidden = [_width(shapes, f"block{i}.0.mlp.") for i in stages]
    _, bits, anchors = shapes["block1.0.attn.qk_quant.ksh.A"]
    stride = shapes["patch_embed1.proj.weight"][2]
    tables = shapes.get("pos_embed1")
    return {
        # PVT's first patches do not overlap: their kernel is as wide as their stride.
        "image_size": None if tables is None else math.isqrt(tables[1]) * stride,
        "dims": dims,
        # Heads are equally wide in the last two stages of all published sizes.
        "heads": (*heads, dims[3] * heads[2] // dims[2]),
        "mlp_ratios": [width // dim for width, dim in zip(hidden, dims, strict=True)],
        "depths": [golden.count(rf"block{i}\.(\d+)\.") for i in stages],
        "num_classes": shapes["head.weight"][0],
        "projections": _kind(shapes, "block1.0.attn."),
        "mlps": _kind(shapes, "block1.0.mlp."),
        "bits": bits,
        "anchors": anchors,
    }


def _kind(shapes: dict[str, tuple[int, ...]], prefix: str) -> str:
    names = [name for name in shapes if name.startswith(prefix)]
    if any(".gate." in name for name in names):
        return "experts"
    return "shift" if any(name.endswith(".shift") for name in names) else "linear"


def _width(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    """Return the hidden width of an MLP, whatever its first layer is made of."""
    return next(
        s[0] for n, s in shapes.items() if n.startswith(prefix) and "fc1" in n and ".gate." not in n
    )


def _taps(network: nn.Module, depths: list[int]) -> dict[str, nn.Module]:
    """Return the modules whose outputs are recorded, by the names of the record."""
    taps: dict[str, nn.Module] = {}
    for stage, depth in enumerate(depths, start=1):
        taps[f"patch_embed{stage}"] = getattr(network, f"patch_embed{stage}")
        blocks = getattr(network, f"block{stage}")
        for index, block in enumerate(blocks):
            taps[f"block{stage}_{index}"] = block
            taps[f"block{stage}_{index}_attention"] = block.attn
            taps[f"block{stage}_{index}_mlp"] = block.mlp
            if hasattr(block.attn, "hash"):
                taps[f"block{stage}_{index}_codes"] = block.attn.hash
        taps[f"block{stage}_last"] = blocks[depth - 1]
        if hasattr(network, f"norm{stage}"):
            taps[f"norm{stage}"] = getattr(network, f"norm{stage}")
    return taps
