"""lavin-dit: the joint transformer with its sampling, or, where the file has an encoder, the VAE."""

from __future__ import annotations

import torch

from models.generation.lavin_dit_network import LaVinDiT, LaVinDiTConfig
from models.generation.lavin_dit_sampling import guided_velocity, sample, without_examples
from models.generation.lavin_dit_vae import SpatioTemporalVAE
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    if any(name.startswith("encoder.") for name, _ in golden.state):
        return _vae(golden)
    return _transformer(golden)


def _transformer(golden: Golden) -> dict[str, torch.Tensor]:
    given = golden.config
    config = LaVinDiTConfig(
        patch_size=tuple(given["patch_size"]),
        in_channels=given["in_channels"],
        hidden_size=given["hidden_size"],
        depth=given["depth"],
        num_heads=given["num_heads"],
        kv_group=given["kv_group"],
    )
    network = load(LaVinDiT(config), golden.weights())
    cond, noise = golden.input("cond"), golden.input("query_latent_noise")
    time = golden.input("timestep")
    found: dict[str, torch.Tensor] = {}
    hooks = []
    for i, block in enumerate(network.blocks):

        def keep(_module: torch.nn.Module, _inputs: object, result: tuple, i: int = i) -> None:
            found[f"block{i}_cond"], found[f"block{i}_x"] = result

        hooks.append(block.register_forward_hook(keep))
    found["velocity"] = network(noise, time, cond)
    for hook in hooks:
        hook.remove()
    guidance, knots = given["cfg_scale"], given["ode_knots"]
    found["velocity_null"] = network(noise, time, without_examples(cond))
    found["velocity_guided"] = guided_velocity(network, noise, time, cond, guidance)
    found[f"sample_{len(knots)}_steps"] = sample(network, noise, cond, guidance, knots)
    return found


def _vae(golden: Golden) -> dict[str, torch.Tensor]:
    names = ("block_out_channels", "layers_per_block", "latent_channels")
    given = {name: golden.config[name] for name in names if name in golden.config}
    network = load(SpatioTemporalVAE(**given), golden.weights())
    found = {}
    for name in golden.inputs:
        moments = network.moments(2 * golden.input(name) - 1)
        found[f"{name}_moments"] = moments
        found[f"{name}_decoded"] = network.decoded(moments.chunk(2, dim=1)[0])
    return found
