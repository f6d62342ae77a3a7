"""The autoencoder between pictures and latents: diffusers' `AutoencoderKL`, from a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.serving import Device
from models.uninitialised import Uninitialised

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# Names of the attention's layers in files written by diffusers before 0.17, and since.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Autoencoder:
    """Encodes RGB pictures to scaled latents, and decodes those."""

    def __init__(self, vae: AutoencoderKL, device: Device) -> None:
        self.vae = vae
        self.device = device
        self.scale = float(vae.config.scaling_factor)

    @classmethod
    def load(cls, folder: Path, device: Device) -> Autoencoder:
        """Load `vae.json` (diffusers' config) and `vae.safetensors`, strictly."""
        # Takes seconds to import, which only those who load this should spend.
        from diffusers import AutoencoderKL

        with Uninitialised():
            vae = AutoencoderKL.from_config(json.loads((folder / "vae.json").read_text()))
        state = load_file(folder / "vae.safetensors")
        vae.load_state_dict({current_name(name): value for name, value in state.items()})
        return cls(vae.float().eval().to(device.torch), device)

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> Tensor:
        """Return scaled latents [B, C, h, w], the means of their posteriors, of uint8 [B, H, W, 3]."""
        pixels = pictures.to(self.device.torch).permute(0, 3, 1, 2).float() / 127.5 - 1
        with self.device.autocast():
            posterior = self.vae.encode(pixels).latent_dist
        return posterior.mean.float() * self.scale

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """Return pictures uint8 [B, H, W, 3] of scaled latents [B, C, h, w].

        One after the other: a 512-pixel decode needs gigabytes, and no picture depends on its batch.
        """
        pictures = []
        for one in latent.float().split(1):
            with self.device.autocast():
                pixels = self.vae.decode(one / self.scale).sample
            levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            pictures.append(levels.permute(0, 2, 3, 1))
        return torch.cat(pictures)


def current_name(name: str) -> str:
    """Return diffusers' present name of an entry of a file of any age."""
    module, _, leaf = name.rpartition(".")
    parent, _, last = module.rpartition(".")
    return f"{parent}.{_RENAMED[last]}.{leaf}" if last in _RENAMED else name
