"""Hyena N-D: built from the file's switches and shapes, loaded by the official names."""

from __future__ import annotations

import torch

from models.classification._hyena_nd_network import Hyena2d
from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    hyena = architecture("hyena-nd")
    config = _config(golden)
    weights = _one_frequency_each(golden.weights())
    network = load(hyena.network(config), hyena.translate({"model": weights}, config))
    taps: dict[str, torch.nn.Module] = {"patch_embed": network.patch_embed, "tokens": network.norm}
    for i, block in enumerate(network.blocks):
        taps |= {f"block{i}": block, f"block{i}.attn": block.attn}
        if isinstance(block.attn, Hyena2d) and block.attn.filter_fn is not None:
            filters = block.attn.filter_fn
            if filters.joint:
                taps[f"block{i}.filter"] = filters.implicit_filter  # before the decay
    found: dict[str, torch.Tensor] = {}
    for name, module in taps.items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    found["logits"] = network(golden.input("pixel_values"))
    return found


def _one_frequency_each(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give all names of a block's one frequency the value of the last, which the reference kept."""
    last = {_block(name): value for name, value in weights.items() if name.endswith(".freq")}
    return {
        name: last[_block(name)] if name.endswith(".freq") else value
        for name, value in weights.items()
    }


def _block(name: str) -> str:
    return name.partition(".attn.")[0]


def _config(golden: Golden) -> dict[str, object]:
    given = golden.config
    dim, _, patch, _ = golden.shape("patch_embed.proj.weight")
    # DeiT's heads are 64 wide at every size.
    return {
        "image_size": golden.inputs["pixel_values"]["shape"][-1],
        "patch_size": patch,
        "dim": dim,
        "depth": golden.count(r"blocks\.(\d+)\."),
        "heads": given.get("num_heads", max(dim // 64, 1)),
        "method": given.get("method", "hyena2d"),
        "direction": given.get("directional_mode", "standard"),
        "window": given.get("window_mode", "standard"),
        "joint_filter": given.get("hyena2d_filter", False),
        "free_kernel": given.get("direct_paramtrization", False),
        "sqrt_decay": given.get("hyena2d_sqrt_decay", False),
        "order": given.get("hyena_order", 2),
        "filter_width": given.get("hyena_filter_order", 64),
        "num_classes": golden.shape("head.weight")[0],
    }
