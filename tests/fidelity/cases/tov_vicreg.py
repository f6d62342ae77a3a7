"""TOV-VICReg's training network: built from the shapes in the file, loaded by the official names."""

from __future__ import annotations

import torch
from torch import nn

from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    tov_vicreg = architecture("tov-vicreg")
    config = _config(golden)
    network = load(tov_vicreg.network(config), tov_vicreg.translate(golden.weights(), config))
    encoder = getattr(network, "backbone", network)
    found: dict[str, torch.Tensor] = {}
    taps = {f"block{i}": block for i, block in enumerate(encoder.blocks)}
    for name, module in (taps | {"last_blocks": encoder.norm}).items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    encoder.blocks[0].register_forward_pre_hook(
        lambda _module, inputs: found.__setitem__("embedded", inputs[0])
    )
    encoder.blocks[-1].attn.register_forward_pre_hook(
        lambda module, inputs: found.__setitem__("last_attention", _attention(module, inputs[0]))
    )
    vector, _ = network.represent(golden.input("frames"))
    found["representation"] = vector
    if config["projection"] is not None:
        found["projection"] = network.projector(vector)
        # The notes name `frames`, `before` and `after`, but what was recorded is, to the last digit, the
        # head's answer to `frames` in all three places.
        found["temporal_logit"] = network.disorder(vector, vector, vector)
    return {name: output.contiguous() for name, output in found.items()}


def _attention(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return how much each token attends to each, [B, heads, n, n]."""
    qkv = module.qkv(x).unflatten(-1, (3, module.num_heads, -1))
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)


def _config(golden: Golden) -> dict[str, object]:
    names = {name for name, _ in golden.state}
    prefix = "backbone." if "backbone.pos_embed" in names else ""
    _, entries, dim = golden.shape(f"{prefix}pos_embed")
    patch_size = golden.shape(f"{prefix}patch_embed.proj.weight")[-1]
    widths = [
        golden.shape(name)[0]
        for name in (f"projector.{i}.weight" for i in range(golden.count(r"projector\.(\d+)\.")))
        if name in names and len(golden.shape(name)) == 2
    ]
    return {
        "table_size": round((entries - 1) ** 0.5) * patch_size,
        "patch_size": patch_size,
        "dim": dim,
        "depth": golden.count(rf"{prefix}blocks\.(\d+)\."),
        "heads": golden.config.get("num_heads", dim // 64),
        "projection": widths or None,
    }
