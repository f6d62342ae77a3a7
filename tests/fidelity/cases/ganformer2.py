"""ganformer2: the GANformer generator, with the file's buffers, with its own, and from styles alone."""

from __future__ import annotations

import dataclasses

import torch

from models.generation.ganformer2_network import GANformer, GANformerConfig, released_state
from tests.fidelity.golden import Golden, load

# Entries that the constructor computes, which the file's later runs keep.
_COMPUTED = ("resample_kernel", "grid_pos")
# The file's styles are multiplied with this, so that the attention is not uniform.
_STRONG = 100


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    fields = {field.name for field in dataclasses.fields(GANformerConfig)}
    network = GANformer(GANformerConfig(**{k: v for k, v in golden.config.items() if k in fields}))
    own = {k: v.clone() for k, v in network.state_dict().items() if k.endswith(_COMPUTED)}
    load(network, released_state({"Gs": golden.weights()}))
    found: dict[str, torch.Tensor] = {}
    suffix = ""

    def keep(name: str, result: tuple[torch.Tensor, object]) -> None:
        found[name + suffix] = result[0]
        if isinstance(result[1], torch.Tensor):
            found[f"{name}_attention{suffix}"] = result[1]

    watched: dict[str, torch.nn.Module] = {}
    for resolution, block in zip(
        network.synthesis.resolutions, network.synthesis.blocks, strict=True
    ):
        watched[f"b{resolution}"] = block
        watched |= {f"b{resolution}_{name}": module for name, module in block.named_children()}
    watched = {n: m for n, m in watched.items() if n.endswith(("conv0", "conv1")) or "_" not in n}
    watched |= {
        f"last_{name}": getattr(network.synthesis.blocks[-1], name) for name in ("conv0", "conv1")
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda _module, _inputs, result, name=name: keep(name, result))
    z = golden.input("z")
    truncation = golden.config["truncation_psi"]
    noise = network.synthesis.constant_noise() if golden.config["noise_mode"] == "const" else None
    found["ws"] = network.styles(z, truncation)[:, :, 0]
    found["image"] = network(z, truncation, noise)
    network.load_state_dict(own, strict=False)
    suffix = "_own_buffers"
    found["image_own_buffers"] = network(z, truncation, noise)
    suffix = "_from_ws"
    painted = network.paint(_STRONG * golden.input("ws"))
    found["image_from_ws"] = painted.pictures
    found["attention_from_ws"] = painted.attention_maps()
    return found
