"""styleswin: the generator with the file's buffers, with its own, and with truncated styles."""

from __future__ import annotations

import dataclasses

import torch

from models.generation.styleswin_network import StyleSwin, StyleSwinConfig, released_state
from tests.fidelity.golden import Golden, load

# Entries that the constructor computes, which the file's second and third runs keep.
_COMPUTED = (".kernel", "attn_mask2")


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    fields = {field.name for field in dataclasses.fields(StyleSwinConfig)}
    config = StyleSwinConfig(**{k: v for k, v in golden.config.items() if k in fields})
    network = StyleSwin(config)
    own = {k: v.clone() for k, v in network.state_dict().items() if k.endswith(_COMPUTED)}
    load(network, released_state({"g_ema": golden.weights()}))
    found: dict[str, torch.Tensor] = {}
    suffix = ""
    watched = {f"style_layer{i}": m for i, m in enumerate(network.style)} | {"style": network.style}
    for i, stage in enumerate(network.layers):
        watched |= {f"layer{i}_block{j}": block for j, block in enumerate(stage.blocks)}
        if stage.upsample is not None:
            watched[f"layer{i}_upsampled"] = stage.upsample
    for name, module in watched.items():
        module.register_forward_hook(
            lambda _module, _inputs, result, name=name: found.__setitem__(name + suffix, result)
        )
    z = golden.input("z")
    found["image"] = network(z)
    suffix = "_own_buffers"
    network.load_state_dict(own, strict=False)
    found["image_own_buffers"] = network(z)
    suffix = "_truncated_own_buffers"
    found["image_truncated_own_buffers"] = network(
        z[:1], golden.config["truncation"], golden.input("truncation_latent")
    )
    return found
