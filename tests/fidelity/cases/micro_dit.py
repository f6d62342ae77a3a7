"""micro-dit: the DiT under the authors' names, its guided denoiser and the Heun sampler."""

from __future__ import annotations

import re
from typing import Any

import torch

from models.diffusion.edm import heun
from models.generation.micro_dit_network import DiT, DiTConfig, linspace, published
from models.generation.micro_dit_sampling import GuidedDenoiser
from tests.fidelity.golden import Golden


def _multipliers(value: Any, depth: int) -> tuple[float, ...]:
    """Read a list of multipliers, or the words `linspace(start, stop, depth)`."""
    if isinstance(value, str):
        start, stop, count = re.findall(r"[\d.]+|depth", value.partition("(")[2])
        return linspace(float(start), float(stop), depth if count == "depth" else int(count))
    return tuple(float(v) for v in value)


def _config(config: dict[str, Any]) -> DiTConfig:
    if "dit_arch" in config:
        given = {
            k: config[k]
            for k in ("in_channels", "caption_channels", "pos_interp_scale")
            if k in config
        }
        return published(config["dit_arch"], input_size=config["latent_res"], **given)
    settings = dict(config["dit"])
    for name in ("qkv_multipliers", "ffn_multipliers"):
        value = settings.get(name, config.get(name))
        if value is not None:
            settings[name] = _multipliers(value, settings["depth"])
    return DiTConfig(**settings)


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    network = DiT(_config(golden.config))
    results = {"pos_embed_built": network.pos_embed.clone()}
    network.load_state_dict(golden.weights())
    network.eval()
    latent, caption, sigma, noise = (
        golden.input(name) for name in ("latent", "caption", "sigma", "noise")
    )
    caption = caption.squeeze(1)

    def keep(name: str) -> Any:
        return lambda module, arguments, result: results.__setitem__(name, result)

    hooks = [
        block.register_forward_hook(keep(f"block_{i}")) for i, block in enumerate(network.blocks)
    ]
    mixer = list(network.patch_mixer)
    hooks += [
        block.register_forward_hook(keep(f"patch_mixer_{i}")) for i, block in enumerate(mixer)
    ]
    conditioning = network.condition(caption)
    results["caption_tokens"] = conditioning.tokens
    results["network"] = network(latent, sigma.log() / 4, conditioning)
    for hook in hooks:
        hook.remove()
    if mixer:
        results["patch_mixer_last"] = results[f"patch_mixer_{len(mixer) - 1}"]

    guidance = torch.tensor([float(golden.config["guidance_scale"])])
    denoise = GuidedDenoiser(
        network, network.condition(caption[:1]), guidance, sigma_data=golden.config["sigma_data"]
    )
    results["denoised_cfg"] = denoise(0.5 * latent[:1].double(), float(sigma[0]))
    results["sampled_latent"] = heun(denoise, noise, golden.config["sampler_steps"])
    return results
