"""gms: the mapping network alone, or with the autoencoder around it, under the authors' names."""

from __future__ import annotations

from typing import Any

import torch

from models.registry import architecture
from models.segmentation.gms import GMS, LatentMapping, probabilities
from tests.fidelity.golden import Golden, load

LEVELS = ("out", "level1", "level2", "level3")
PREFIXES = ("vae_model.", "mapping_model.")


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    if "mapping" not in golden.config:
        return _mapping(golden)
    gms = architecture("gms")
    vae = golden.config["vae"]
    config = {
        "vae": vae["ddconfig"] | {"embed_dim": vae["embed_dim"]},
        "mapping": _arguments(golden.config["mapping"]),
        "scale_factor": golden.config["scale_factor"],
    }
    network = gms.network(config)
    assert isinstance(network, GMS)
    # The released files hold one network each.
    state = {}
    for prefix in PREFIXES:
        weights = golden.weights(prefixes=(prefix,))
        part = {name.removeprefix(prefix): value for name, value in weights.items()}
        state |= gms.translate({"model": part}, config)
    load(network, state)
    posterior = network.vae_model.encode(golden.input("image") * 2 - 1).latent_dist
    latent = posterior.mean * network.scale_factor
    mapped = network.mapping_model(latent)
    decoded = network.decode(mapped)
    return {
        "posterior_mean": posterior.mean,
        "posterior_logvar": posterior.logvar,
        "image_latent": latent,
        "mask_latent": mapped,
        "decoded": decoded,
        "channel_mean": decoded.mean(1, keepdim=True),
        "mask_probability": probabilities(decoded)[:, None],
    }


def _mapping(golden: Golden) -> dict[str, torch.Tensor]:
    network = load(LatentMapping(**_arguments(golden.config)), golden.weights())
    found = {}
    for name, module in network.named_children():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    return found | dict(zip(LEVELS, network.levels(golden.input("latent")), strict=True))


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "in_channels": config["in_channel"],
        "out_channels": config["out_channels"],
        "ch": config["ch"],
        "ch_mult": config["ch_mult"],
    }
